"""The first pass over a trace: what has to be known before it is played, and whether it can be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.lab.events import Event, Events, Trace
from controller.lab.page_groups import Groups, find_groups
from sharedfs.common.errors import CallerMistake

Progress = Callable[[int], None]
"""Told how many rows have been read since it was told last."""


@dataclass(frozen=True, slots=True)
class Survey:
    """`paths` of tenants by number, `most_alive` at a time; `first_allocator` and `highest_tenant` are numbers."""

    groups: Groups
    start_us: int
    end_us: int
    first_allocator: int | None
    most_alive: int
    highest_tenant: int
    paths: Mapping[int, str]


def survey(trace: Trace, progress: Progress) -> Survey:
    """Raises CallerMistake when `trace` makes no sense."""
    found = _Found()
    groups = find_groups(found.watch(trace, progress))
    if found.end_us is None:
        raise CallerMistake("the trace has no rows")
    return Survey(
        groups,
        found.start_us,
        found.end_us,
        found.first_allocator,
        found.most_alive,
        found.highest_tenant,
        found.paths,
    )


@dataclass(slots=True)
class _Found:
    start_us: int = 0
    end_us: int | None = None
    first_allocator: int | None = None
    alive: int = 0
    most_alive: int = 0
    highest_tenant: int = 0
    paths: dict[int, str] = field(default_factory=dict)

    def watch(self, trace: Trace, progress: Progress) -> Iterator[Events]:
        for events in trace.batches():
            if len(events):
                self._look_at(events)
                yield events
                progress(len(events))

    def _look_at(self, events: Events) -> None:
        if (np.diff(events.time_us) < 0).any() or (self.end_us is not None and events.time_us[0] < self.end_us):
            raise CallerMistake("the rows of the trace are not in the order of time")
        if min(events.tenant.min(), events.file.min()) < 0:
            raise CallerMistake("the trace has a tenant or a file with a negative number")
        self.highest_tenant = max(self.highest_tenant, int(events.tenant.max()))
        if self.end_us is None:
            self.start_us = int(events.time_us[0])
        self.end_us = int(events.time_us[-1])
        if self.first_allocator is None:
            allocations = np.flatnonzero(events.event == Event.ALLOCATE)
            self.first_allocator = int(events.tenant[allocations[0]]) if len(allocations) else None
        for row in np.flatnonzero((events.event == Event.START) | (events.event == Event.EXIT)).tolist():
            number = int(events.tenant[row])
            if events.event[row] == Event.EXIT:
                self.alive -= 1
            elif number in self.paths:
                raise CallerMistake(f"tenant {number} of the trace starts twice: a new cgroup has a new number")
            else:
                self.paths[number] = events.names[row]
                self.alive += 1
                self.most_alive = max(self.most_alive, self.alive)
