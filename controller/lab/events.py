"""What a trace says: events as columns, a batch at a time. Pure; how they are stored is `trace`'s matter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sharedfs.api.types import NO_LIMIT, Event

__all__ = ["NO_LIMIT", "Event", "Events", "MemoryTrace", "Trace"]

PAGE_BYTES = 4096

PAGE_EVENTS = 6
OWN_EVENTS = 4
"""The first four are a tenant's; the others happen to a page whoever made them (docs/traces.md has all)."""


@dataclass(frozen=True, slots=True)
class Events:
    """Rows of one length, in the order of time. `names` are those of tenants (START) and files (FILE), by row.

    `value` is how many accesses a TOUCH stands for, the limit in bytes of a START (NO_LIMIT: none), and the kind of
    page of a FILE (`controller.policies.page_state.Kind`).
    """

    time_us: NDArray[np.int64]
    event: NDArray[np.uint8]
    tenant: NDArray[np.int32]
    file: NDArray[np.int32]
    first_page: NDArray[np.int64]
    last_page: NDArray[np.int64]
    value: NDArray[np.int64]
    names: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_us)


class Trace(Protocol):
    """A trace can be read more than once. `roles` names tenants that somebody wants to look at ("cheater")."""

    @property
    def rows(self) -> int: ...
    @property
    def roles(self) -> Mapping[str, int]: ...
    def batches(self) -> Iterator[Events]: ...


@dataclass(frozen=True, slots=True)
class MemoryTrace:
    """A trace that is there as a whole."""

    parts: tuple[Events, ...]
    roles: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(map(len, self.parts))

    def batches(self) -> Iterator[Events]:
        return iter(self.parts)
