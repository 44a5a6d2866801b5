"""One settlement, as all who ask see it."""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.api.types import PoolAnswers
from controller.billing.bill import Bill
from controller.billing.holdings import Books
from controller.settlement.planner import Plan
from controller.settlement.settle import Position
from sharedfs.linux.cgroups import CgroupRef


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`gone` exited before their pools noticed; the bill is without them.

    `positions` lacks tenants whose limits cannot be read, and has the cgroups above tenants that have a budget too.
    `taken_seconds` is when it was taken, on the clock of the debts.
    """

    number: int
    books: tuple[Books, ...]
    pool_answers: tuple[PoolAnswers, ...]
    gone: frozenset[CgroupRef]
    bill: Bill
    positions: Mapping[CgroupRef, Position]
    planned: Plan
    taken_seconds: float

    def tenant(self, path: str) -> CgroupRef | None:
        return next((cgroup for cgroup in self.bill.tenants if cgroup.path == path), None)
