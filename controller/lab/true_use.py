"""What each tenant truly used: the measure that bills are held against.

A tenant uses a page for `window_seconds` after it touched it, and for as long as it has it mapped. Who made it uses it
as long as it lives: it keeps it there. Two yardsticks come from this.
*Even* use is split evenly among those who use a page at that time, *by access* in proportion to how often they accessed
the file lately.

Unlike policies, this looks at every touch: it keeps a time for each group and each tenant that is alive. It is made up
at each tick and at each exit, whose effect is worked in at once. Nothing is rounded, for nobody is charged.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.lab.access_counts import Accesses
from controller.lab.accounts import Accounts, doubled
from controller.lab.events import PAGE_BYTES, Event
from controller.lab.page_groups import Groups
from controller.policies.page_state import Kind

_NEVER = -1
_NOBODY = -1
_ROWS_AT_ONCE = 1 << 16


@dataclass(slots=True)
class Yardstick:
    """By account: bytes now, and byte-seconds so far."""

    level: NDArray[np.float64] = field(default_factory=lambda: np.zeros(16))
    used: NDArray[np.float64] = field(default_factory=lambda: np.zeros(16))

    def grow(self, accounts: Accounts) -> None:
        while len(self.level) < accounts.capacity:
            self.level, self.used = doubled(self.level), doubled(self.used)


class Yardsticks:
    def __init__(self, groups: Groups, slots: int, window_us: int, accesses: Accesses) -> None:
        self.even, self.by_access = Yardstick(), Yardstick()
        self._window_us = window_us
        self._accesses = accesses
        self._weights = accesses.weights.copy()  # as they were at the last tick
        self._file = groups.file
        self._bytes = groups.pages.astype(np.float64) * PAGE_BYTES
        self._swappable = np.array([kind is Kind.SHMEM for kind in groups.kinds])[groups.file]
        self._there = np.zeros(len(groups), dtype=bool)
        self._swapped = np.zeros(len(groups), dtype=bool)
        self._maker = np.full(len(groups), _NOBODY, dtype=np.int32)
        self._last_us = np.full((len(groups), slots), _NEVER, dtype=np.int64)
        self._mapped = np.zeros((len(groups), slots), dtype=bool)
        self._users = np.zeros((len(groups), slots), dtype=bool)
        self._slots: dict[int, int] = {}
        self._is_nobody = np.zeros(slots, dtype=bool)
        # Scratch: where in a batch an absent group is allocated.
        self._allocated = np.full(len(groups), np.iinfo(np.int64).max)

    @property
    def memory_bytes(self) -> int:
        """Of the arrays."""
        return self._maker.nbytes + self._last_us.nbytes + self._mapped.nbytes + self._users.nbytes

    # -- events --------------------------------------------------------------------------------------------------------

    def start(self, slot: int, account: int, *, is_nobody: bool = False) -> None:
        """`is_nobody`: what is allocated in its name is used by nobody."""
        self._slots[slot] = account
        self._is_nobody[slot] = is_nobody

    def play(
        self,
        events: NDArray[np.uint8],
        slots: NDArray[np.int32],
        groups: NDArray[np.int64],
        times_us: NDArray[np.int64],
    ) -> None:
        """Events of pages, one a group, in order."""
        begin = 0
        for stop in [*np.flatnonzero(events > Event.TOUCH).tolist(), len(events)]:
            self._touch(events[begin:stop], slots[begin:stop], groups[begin:stop], times_us[begin:stop])
            if stop < len(events):
                self._change(Event(int(events[stop])), int(slots[stop]), int(groups[stop]), int(times_us[stop]))
            begin = stop + 1

    def exit(self, slot: int) -> None:
        """Whoever else uses the tenant's pages has more of them from now on."""
        concerned = np.flatnonzero(self._users[:, slot])
        before = self._shares(concerned)
        self._maker[self._maker == slot] = _NOBODY
        self._last_us[:, slot] = _NEVER
        self._mapped[:, slot] = self._users[:, slot] = False
        self._add(before, -1)
        self._add(self._shares(concerned), 1)
        account = self._slots.pop(slot)
        self.even.level[account] = self.by_access.level[account] = 0

    # -- use -----------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        for yardstick in (self.even, self.by_access):
            yardstick.used += yardstick.level * seconds

    def tick(self, now_us: int, accounts: Accounts) -> None:
        """Who uses what now. O(groups x tenants alive)."""
        self._weights[:] = self._accesses.weights
        for yardstick in (self.even, self.by_access):
            yardstick.grow(accounts)
            yardstick.level[:] = 0
        for begin in range(0, len(self._there), _ROWS_AT_ONCE):
            rows = np.arange(begin, min(begin + _ROWS_AT_ONCE, len(self._there)))
            users = (self._last_us[rows] >= max(now_us - self._window_us, _NEVER + 1)) | self._mapped[rows]
            made = np.flatnonzero(self._maker[rows] != _NOBODY)
            users[made, self._maker[rows[made]]] = True
            users &= (self._there & ~self._swapped)[rows][:, None] & ~self._is_nobody
            self._users[rows] = users
            self._add(self._shares(rows), 1)

    def _shares(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each slot uses of some groups, by both yardsticks."""
        users = self._users[rows]
        sizes = self._bytes[rows]
        weights = np.maximum(1, self._weights[self._file[rows]]) * users
        return _split(users.astype(np.float64), sizes), _split(weights.astype(np.float64), sizes)

    def _add(self, shares: tuple[NDArray[np.float64], NDArray[np.float64]], sign: int) -> None:
        slots, accounts = list(self._slots), list(self._slots.values())
        for yardstick, by_slot in zip((self.even, self.by_access), shares, strict=True):
            yardstick.level[accounts] += sign * by_slot[slots]

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _touch(
        self,
        events: NDArray[np.uint8],
        slots: NDArray[np.int32],
        groups: NDArray[np.int64],
        times_us: NDArray[np.int64],
    ) -> None:
        """Allocations and touches. What touches an absent page, before it is allocated, does nothing."""
        there = self._there[groups]
        if not there.all():
            made = np.flatnonzero(events == Event.ALLOCATE)
            self._allocated[groups[made][::-1]] = made[::-1]
            counts = there | (np.arange(len(groups)) >= self._allocated[groups])
            first = made[~there[made] & (self._allocated[groups[made]] == made)]
            self._maker[groups[first]] = slots[first]
            self._allocated[groups[made]] = np.iinfo(np.int64).max
            self._there[groups[made]] = True
            slots, groups, times_us = slots[counts], groups[counts], times_us[counts]
        self._swapped[groups] = False
        self._last_us[groups, slots] = times_us  # of several the last assignment stays: the latest

    def _change(self, event: Event, slot: int, group: int, time_us: int) -> None:
        if event is Event.FREE:
            self._there[group] = self._swapped[group] = False
            self._maker[group] = _NOBODY
            self._last_us[group] = _NEVER
            self._mapped[group] = False
        elif event is Event.SWAP:
            self._swapped[group] = self._there[group] and self._swappable[group]
        elif event is Event.MAP and self._there[group]:
            self._swapped[group] = False
            self._mapped[group, slot] = True
        elif event is Event.UNMAP and self._mapped[group, slot]:
            self._mapped[group, slot] = False
            self._last_us[group, slot] = time_us


def _split(weights: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's size in proportion to its weights, summed up by column."""
    whole = weights.sum(axis=1)
    parts: NDArray[np.float64] = np.divide(sizes, whole, out=np.zeros_like(sizes), where=whole > 0) @ weights
    return parts
