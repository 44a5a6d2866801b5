"""What a policy costs whom: bills at moments, summed up over time in byte-seconds.

A bill holds from one moment to the next. Moments are the replay's ticks, and the instants just before and just after an
exit, so that what an exit changes is not smeared over a tick.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.lab.accounts import Accounts
from controller.lab.engine import ExitCost, Machine
from controller.lab.true_use import Yardsticks
from controller.policies.fairride import FairRide
from controller.policies.families import ByAccess
from controller.policies.page_state import Page, Place
from controller.policies.policy import Demand, Parts, Policy
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the bytes are. `dying_*`: on groups that were removed, in memory; their number counts swap entries too.

    `nobody_bytes` are on no bill: unclaimed, or on the books of something that is no tenant.
    """

    seconds: float
    resident_bytes: int
    billed_bytes: int
    dying_groups: int
    dying_bytes: int
    parent_bytes: int
    root_bytes: int
    nobody_bytes: int
    swapped_bytes: int
    tenants: int


@dataclass(slots=True)
class Meter:
    """The bill of one policy, on a machine that it may share with others, and the bill's integral."""

    policy: Policy
    machine: Machine
    accounts: Accounts
    level: NDArray[np.int64] = field(init=False)
    paid: Column = field(init=False)
    error: Column = field(init=False)
    access_error: Column = field(init=False)
    victims: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    moments: list[Moment] = field(default_factory=list)
    exits: list[ExitCost] = field(default_factory=list)
    delayed: Counter[CgroupRef] = field(default_factory=Counter)
    resident_bytes: int = 0
    swapped_bytes: int = 0
    _levels: dict[CgroupRef, int] = field(default_factory=dict)
    _parts: dict[Page, tuple[int, Parts]] = field(default_factory=dict)
    _held_by_orphans: Counter[CgroupRef] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.level = np.zeros(self.accounts.capacity, dtype=np.int64)
        self.paid, self.error, self.access_error = (np.zeros(self.accounts.capacity) for _ in range(3))

    def advance(self, seconds: float, yardsticks: Yardsticks) -> None:
        """The bill has held for so long. Before anybody has a new one, and all columns are of one length."""
        self.paid += self.level * seconds
        alive = self.accounts.alive
        self.error += np.abs(self.level - yardsticks.even.level) * alive * seconds
        self.access_error += np.abs(self.level - yardsticks.by_access.level) * alive * seconds

    def grow(self) -> None:
        """Room for all accounts."""
        while len(self.level) < self.accounts.capacity:
            self.level = np.concatenate((self.level, np.zeros_like(self.level)))
            self.paid, self.error, self.access_error = (
                np.concatenate((column, np.zeros_like(column))) for column in (self.paid, self.error, self.access_error)
            )

    def bill(self, changes: Iterable[tuple[Page, int]], demand: Demand | None) -> None:
        """A new bill, from what has changed since the last one. Raises BrokenInvariant when it does not conserve (I1).

        O(sorts of pages that changed); for a policy that weighs accesses, O(all sorts), and only given a `demand`.
        """
        policy = self.policy
        for page, held_bytes in changes:
            self._rebill(page, held_bytes)
        if isinstance(policy, ByAccess):
            if demand is None:
                return
            resident = self.machine.resident()
            self._levels = {}
            if isinstance(policy, FairRide):
                parts, delayed = policy.bill_and_delays(resident, demand)
                self.delayed.update(delayed)
            else:
                parts = policy.bill(resident, demand)
            self._add(parts, 1)
        self._draw_up()
        billed_bytes = int(self.level.sum())
        if policy.conserves and billed_bytes > self.resident_bytes:
            raise BrokenInvariant(f"I1: {policy.name} bills {billed_bytes} bytes of {self.resident_bytes}")

    def note_exit(self, cost: ExitCost, over_before: set[int]) -> None:
        """After the bill that follows an exit: who is over its limit now, and was not just before."""
        self.exits.append(cost)
        self.victims |= self.over_limit() - over_before

    def note_tick(self, seconds: float) -> None:
        self.over |= self.over_limit()
        accounts, level = self.accounts, self.level
        billed_bytes = int(level.sum())
        parents = ~accounts.is_tenant
        dead = accounts.is_tenant & ~accounts.alive
        root_bytes = int(level[accounts.root])
        self.moments.append(
            Moment(
                seconds=seconds,
                resident_bytes=self.resident_bytes,
                billed_bytes=billed_bytes,
                dying_groups=sum(1 for held in self._held_by_orphans.values() if held),
                dying_bytes=int(level[dead].sum()),
                parent_bytes=int(level[parents].sum()) - root_bytes,
                root_bytes=root_bytes,
                nobody_bytes=max(0, self.resident_bytes - billed_bytes),
                swapped_bytes=self.swapped_bytes,
                tenants=int(accounts.alive.sum()),
            )
        )

    def over_limit(self) -> set[int]:
        over = (self.level > self.accounts.limit_bytes) & self.accounts.alive
        return set(np.flatnonzero(over).tolist())

    def _rebill(self, page: Page, held_bytes: int) -> None:
        before_bytes, parts = self._parts.pop(page, (0, {}))
        self._add(parts, -1)
        if page.place is Place.RESIDENT:
            self.resident_bytes += held_bytes - before_bytes
        elif page.place is Place.SWAPPED:
            self.swapped_bytes += held_bytes - before_bytes
        if page.orphan and page.owner is not None:
            self._held_by_orphans[page.owner] += held_bytes - before_bytes
        if held_bytes and page.place is not Place.ABSENT:
            parts = {}
            if page.place is Place.RESIDENT and not isinstance(self.policy, ByAccess):
                parts = self.policy.charge(page, held_bytes)
            self._parts[page] = held_bytes, parts
            self._add(parts, 1)

    def _add(self, parts: Parts, sign: int) -> None:
        levels = self._levels
        for cgroup, part in parts.items():
            levels[cgroup] = levels.get(cgroup, 0) + sign * part

    def _draw_up(self) -> None:
        """The bill as a column."""
        self._levels = {cgroup: level for cgroup, level in self._levels.items() if level}
        numbers = [self.accounts.number(cgroup) for cgroup in self._levels]
        self.grow()
        self.level[:] = 0
        self.level[numbers] = list(self._levels.values())


def jain(values: Column) -> float:
    """Jain's index of fairness: 1 when all are alike, 1/n when one has everything."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else 1.0
