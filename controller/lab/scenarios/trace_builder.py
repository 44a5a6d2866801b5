"""A sheet of events: what a scenario writes on, in any order, and takes off in the order of time."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controller.lab.events import NO_LIMIT, PAGE_BYTES, Event, Events
from controller.policies.page_state import Kind

Seconds = float
MIB_PAGES = (1 << 20) // PAGE_BYTES
GIB_PAGES = (1 << 30) // PAGE_BYTES


@dataclass(slots=True)
class Sheet:
    """`tenants` and `files` are how many have been named so far."""

    tenants: int = 0
    files: int = 0
    _rows: int = 0
    _columns: list[tuple[NDArray[np.int64], ...]] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)

    def start(self, at: Seconds, path: str, limit_bytes: int = NO_LIMIT) -> int:
        """A new tenant's number."""
        self.tenants += 1
        self._name(path)
        self.add(Event.START, at, self.tenants - 1, 0, 0, 0, limit_bytes)
        return self.tenants - 1

    def exit(self, at: Seconds, tenant: int) -> None:
        self.add(Event.EXIT, at, tenant)

    def file(self, at: Seconds, name: str, kind: Kind = Kind.SHMEM) -> int:
        """A new file's number."""
        self.files += 1
        self._name(name)
        self.add(Event.FILE, at, 0, self.files - 1, 0, 0, kind.value)
        return self.files - 1

    def add(
        self,
        event: Event,
        at: ArrayLike,
        tenant: ArrayLike = 0,
        file: ArrayLike = 0,
        first_page: ArrayLike = 0,
        last_page: ArrayLike = 0,
        value: ArrayLike = 0,
    ) -> None:
        """One event, or as many as the longest argument has; times are seconds, and page ranges inclusive."""
        time_us = np.round(np.asarray(at, dtype=np.float64) * 1e6).astype(np.int64)
        columns = np.broadcast_arrays(time_us, int(event), tenant, file, first_page, last_page, value)
        self._columns.append(tuple(np.atleast_1d(column).astype(np.int64) for column in columns))
        self._rows += np.size(columns[0])

    def turn(self, until: Seconds = math.inf) -> Events:
        """What is before `until`, in the order of time (and of writing, at one time). The rest stays on the sheet."""
        columns = [np.concatenate(parts) for parts in zip(*self._columns, strict=True)]
        done = columns[0] < until * 1e6
        order = np.argsort(columns[0], kind="stable")
        order = order[done[order]]
        time_us, event, tenant, file, first_page, last_page, value = (column[order] for column in columns)
        places = dict(zip(order.tolist(), range(len(order)), strict=True)) if self._names else {}
        names = {places[row]: name for row, name in self._names.items() if row in places}
        self._keep(columns, ~done)
        return Events(
            time_us,
            event.astype(np.uint8),
            tenant.astype(np.int32),
            file.astype(np.int32),
            first_page,
            last_page,
            value,
            names,
        )

    def _keep(self, columns: list[NDArray[np.int64]], left: NDArray[np.bool_]) -> None:
        places = np.cumsum(left) - 1
        self._names = {int(places[row]): name for row, name in self._names.items() if left[row]}
        self._columns = [tuple(column[left] for column in columns)]
        self._rows = int(left.sum())

    def _name(self, name: str) -> None:
        self._names[self._rows] = name
