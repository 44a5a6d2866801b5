"""One policy, and what it makes of every page group: its rules applied to arrays of events.

Pages that are alike are one `Page`, known by a number; a group's state is that number. A rule is worked out once for a
page and an operation (one kind of event by one tenant) and noted in a table, `_next[operation, state]`. Most events
of a trace change nothing, and finding that out is two array look-ups for a million of them at once.

Events that do change something need care, for the next event on the same group finds another state. Groups do not
depend on each other, so a batch is played in rounds: in each one the first event of every group that changes it is
carried out, and what came before it on that group is done with. The outcome is that of one event after the other.

An exit asks the rule once for each sort of page that names the tenant, and renumbers the groups in one pass. What it
would cost a kernel is counted, not felt: `ExitCost`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.lab.events import OWN_EVENTS, PAGE_BYTES, Event
from controller.lab.page_groups import Groups
from controller.policies.families import ByAccess
from controller.policies.page_state import Page, Place
from controller.policies.policy import Policy
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef

States = NDArray[np.int32]

FREE_ROW, SWAP_ROW = 0, 1
_OWN_ROWS = 2
_UNKNOWN = -1
# Rounds cost a look at all that is left of a batch: where few groups change again and again, one event after the other
# is faster.
_MOST_ROUNDS = 32
_FEW_EVENTS = 16
_SPARE_STATES = 1024


def row_of(event: Event, slot: int) -> int:
    """The operation's row in the table; `slot` is the tenant's."""
    if event >= OWN_EVENTS:
        return FREE_ROW if event is Event.FREE else SWAP_ROW
    return _OWN_ROWS + slot * OWN_EVENTS + event


def rows_of(events: NDArray[np.uint8], slots: NDArray[np.int32]) -> NDArray[np.int32]:
    """`row_of`, for arrays."""
    rows = slots * OWN_EVENTS
    rows += events
    rows += _OWN_ROWS
    others = np.flatnonzero(events >= OWN_EVENTS)
    if len(others):
        rows[others] = events[others] - Event.FREE
    return rows


@dataclass(slots=True)
class Effects:
    """What happened to pages, counted in pages. `moved_on_access`: charges that an access had to move."""

    moved_at_exit: int = 0
    moved_on_access: int = 0
    evicted: int = 0
    refaulted: int = 0
    swapped_out: int = 0
    swapped_in: int = 0
    stuck: int = 0


@dataclass(frozen=True, slots=True)
class ExitCost:
    """What an exit has to look at: pages one by one, and sorts of pages."""

    pages: int
    sorts: int


class Machine:
    """The state of all groups under one policy."""

    def __init__(self, policy: Policy, groups: Groups) -> None:
        self.policy = policy
        self.effects = Effects()
        self.compactions = 0
        self._group_pages = groups.pages
        self._pages: list[Page] = []
        self._ids: dict[Page, int] = {}
        # Where to look for the pages that name a tenant: those that it owns, and those that have payers at all.
        self._owned: dict[CgroupRef, set[int]] = {}
        self._paid: set[int] = set()
        self._held: list[int] = []
        self._changed: set[int] = set()
        self._tenants: dict[int, CgroupRef] = {}
        self._next = np.full((_OWN_ROWS, 16), _UNKNOWN, dtype=np.int32)
        by_file = [
            self._intern(Page(kind, file=number if isinstance(policy, ByAccess) else None))
            for number, kind in enumerate(groups.kinds)
        ]
        self._states: States = np.array(by_file or [0], dtype=np.int32)[groups.file]
        # Scratch: where in a batch a group first changes.
        self._first = np.full(len(groups), np.iinfo(np.int64).max)

    # -- events --------------------------------------------------------------------------------------------------------

    def start(self, slot: int, tenant: CgroupRef) -> None:
        """From now on `slot` is `tenant`'s."""
        self._tenants[slot] = tenant
        needed = row_of(Event.UNMAP, slot) + 1
        if needed > len(self._next):
            more = np.full((max(needed, 2 * len(self._next)), self._next.shape[1]), _UNKNOWN, dtype=np.int32)
            more[: len(self._next)] = self._next
            self._next = more
        self._next[row_of(Event.ALLOCATE, slot) : needed] = _UNKNOWN

    def play(self, rows: NDArray[np.int32], groups: NDArray[np.int64]) -> None:
        """Operations (`rows_of`) on groups, in their order."""
        for _ in range(_MOST_ROUNDS):
            if len(groups) <= _FEW_EVENTS:
                break
            current = self._states[groups]
            targets = self._targets(rows, current)
            changes = np.flatnonzero(targets != current)
            if not len(changes):
                return
            changed = groups[changes]
            self._first[changed[::-1]] = changes[::-1]  # of several the last assignment stays: the first event
            leading = changes[self._first[changed] == changes]
            self._move(groups[leading], current[leading], targets[leading])
            left = np.flatnonzero(np.arange(len(groups)) > self._first[groups])
            self._first[changed] = np.iinfo(np.int64).max
            rows, groups = rows[left], groups[left]
        for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
            state = int(self._states[group])
            target = int(self._next[row, state])
            if target == _UNKNOWN:
                target = self._learn(row, state)
            if target != state:
                self._states[group] = target
                self._post(state, target, int(self._group_pages[group]))

    def exit(self, tenant: CgroupRef) -> ExitCost:
        """`tenant` was removed. Pages that name it change once for their sort."""
        visited = sorts = 0
        targets: dict[int, int] = {}
        for state in self._naming(tenant):
            page, pages = self._pages[state], self._held[state]
            sorts += 1
            after = self.policy.exit(page, tenant)
            if self.policy.visits(page, tenant):
                visited += pages
                if after.orphan and after.place is Place.RESIDENT:
                    self.effects.stuck += pages
            if after != page:
                targets[state] = self._intern(after)
        self._renumber(targets, at_exit=True)
        return ExitCost(visited, sorts)

    def age(self) -> None:
        """A generation has passed."""
        if self.policy.ages:
            targets = {
                state: self._intern(after)
                for state, page in enumerate(tuple(self._pages))
                if self._held[state] and (after := self.policy.age(page)) != page
            }
            self._renumber(targets, at_exit=False)

    # -- questions -----------------------------------------------------------------------------------------------------

    def holdings(self) -> dict[Page, int]:
        """Bytes of each sort of page that is somewhere, in memory or in swap or thrown out."""
        return {
            page: self._held[state] * PAGE_BYTES
            for state, page in enumerate(self._pages)
            if self._held[state] and page.place is not Place.ABSENT
        }

    def resident(self) -> dict[Page, int]:
        return {page: size for page, size in self.holdings().items() if page.place is Place.RESIDENT}

    def changes(self) -> list[tuple[Page, int]]:
        """The sorts of pages whose bytes are others than at the last call, with their bytes."""
        changed = [(self._pages[state], self._held[state] * PAGE_BYTES) for state in self._changed]
        self._changed.clear()
        return changed

    @property
    def states(self) -> list[Page]:
        """Every group's page."""
        return [self._pages[state] for state in self._states.tolist()]

    @property
    def memory_bytes(self) -> int:
        """Of the arrays."""
        return self._next.nbytes + self._states.nbytes + self._first.nbytes

    def check(self) -> None:
        """Recount from the groups up. Raises BrokenInvariant."""
        recount = np.bincount(self._states, weights=self._group_pages, minlength=len(self._pages)).astype(np.int64)
        for state, page in enumerate(self._pages):
            if page.place is not Place.ABSENT and recount[state] != self._held[state]:
                raise BrokenInvariant(f"I1: {recount[state]} pages are {page}, the books say {self._held[state]}")

    def compact(self) -> None:
        """Forget the sorts of pages of which there are none, when these have become many. Call when nothing changed."""
        used = [state for state, page in enumerate(self._pages) if self._held[state] or page.place is Place.ABSENT]
        if len(self._pages) <= _SPARE_STATES + 2 * len(used) or self._changed:
            return
        kept = [(self._pages[state], self._held[state]) for state in used]
        renumbered = np.zeros(len(self._pages), dtype=np.int32)
        renumbered[used] = np.arange(len(used), dtype=np.int32)
        self._states = renumbered[self._states]
        self._pages, self._ids, self._owned, self._paid, self._held = [], {}, {}, set(), []
        self._next = np.full((len(self._next), 16), _UNKNOWN, dtype=np.int32)
        for page, pages in kept:
            self._held[self._intern(page)] = pages
        self.compactions += 1

    # -- inside --------------------------------------------------------------------------------------------------------

    def _targets(self, rows: NDArray[np.int32], current: States) -> States:
        while True:
            width = self._next.shape[1]
            targets = self._next.ravel().take(rows.astype(np.int64) * width + current)
            unknown = np.flatnonzero(targets == _UNKNOWN)
            if not len(unknown):
                return targets
            for key in np.unique(rows[unknown].astype(np.int64) * width + current[unknown]).tolist():
                self._learn(*divmod(key, width))

    def _learn(self, row: int, state: int) -> int:
        target = self._intern(self._rule(row)(self._pages[state]))
        self._next[row, state] = target
        return target

    def _rule(self, row: int) -> Callable[[Page], Page]:
        if row == FREE_ROW:
            return self.policy.free
        if row == SWAP_ROW:
            return self.policy.swap
        slot, event = divmod(row - _OWN_ROWS, OWN_EVENTS)
        tenant = self._tenants[slot]
        match Event(event):
            case Event.ALLOCATE:
                return lambda page: self.policy.allocate(page, tenant)
            case Event.TOUCH:
                return lambda page: self.policy.touch(page, tenant)
            case Event.MAP:
                return lambda page: self.policy.map(page, tenant)
            case _:
                return lambda page: self.policy.unmap(page, tenant)

    def _intern(self, page: Page) -> int:
        state = self._ids.get(page)
        if state is None:
            state = self._ids[page] = len(self._pages)
            self._pages.append(page)
            self._held.append(0)
            if page.owner is not None:
                self._owned.setdefault(page.owner, set()).add(state)
            if page.maker or page.recent or page.older or page.mapped:
                self._paid.add(state)
            if state >= self._next.shape[1]:
                more = np.full((len(self._next), 2 * self._next.shape[1]), _UNKNOWN, dtype=np.int32)
                more[:, : self._next.shape[1]] = self._next
                self._next = more
        return state

    def _naming(self, tenant: CgroupRef) -> list[int]:
        """The sorts of pages that there are and that name `tenant`."""
        owned = self._owned.get(tenant, set())
        paying = [
            state
            for state in self._paid
            if self._held[state] and state not in owned and self._pages[state].is_paid_by(tenant)
        ]
        return sorted([*paying, *(state for state in owned if self._held[state])])

    def _move(self, groups: NDArray[np.int64], current: States, targets: States) -> None:
        self._states[groups] = targets
        width = len(self._pages)
        keys, pairs = np.unique(current.astype(np.int64) * width + targets, return_inverse=True)
        pages = np.bincount(pairs, weights=self._group_pages[groups])
        for key, count in zip(keys.tolist(), pages.tolist(), strict=True):
            state, target = divmod(key, width)
            self._post(state, target, int(count))

    def _renumber(self, targets: dict[int, int], *, at_exit: bool) -> None:
        """All pages of some sorts become pages of others, at once."""
        for state, target, pages in [(state, target, self._held[state]) for state, target in targets.items()]:
            self._post(state, target, pages, at_exit=at_exit)
        if targets:
            numbers = np.arange(len(self._pages), dtype=np.int32)
            numbers[list(targets)] = list(targets.values())
            self._states = numbers[self._states]

    def _post(self, state: int, target: int, pages: int, *, at_exit: bool = False) -> None:
        """So many pages went from one sort to another."""
        self._held[state] -= pages
        self._held[target] += pages
        self._changed.add(state)
        self._changed.add(target)
        before, after, effects = self._pages[state], self._pages[target], self.effects
        if Place.ABSENT in (before.place, after.place):
            return
        if before.place is not after.place:
            if after.place is Place.SWAPPED:
                effects.swapped_out += pages
            elif after.place is Place.EVICTED:
                effects.evicted += pages
            elif before.place is Place.SWAPPED:
                effects.swapped_in += pages
            else:
                effects.refaulted += pages
        elif before.owner != after.owner:
            if at_exit:
                effects.moved_at_exit += pages
            else:
                effects.moved_on_access += pages
