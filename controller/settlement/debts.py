"""Debts: what tenants cannot bear of their bills, since when, and who bears it meanwhile. Pure.

A debt is what a limit in force leaves its tenant over the target. The bill does not know of debts (I1 holds whatever
is done about them): a debt is memory that the pool holds and that nobody's limit makes room for. With the rule `pool`
it stays so: the pool's own size is what is left for it. The other rules lower the limits of tenants that have headroom
by what one of them cannot bear, the one with most headroom first (water-filling), never so far that it gets into debt.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from posixpath import dirname
from typing import Literal

from controller.policies.split import by_path
from sharedfs.linux.cgroups import CgroupRef

BearingRule = Literal["pool", "parent", "headroom"]
"""Who bears a debt meanwhile: nobody but the pool, those below the debtor's parent cgroup, or all with headroom."""


@dataclass(frozen=True, slots=True)
class Debt:
    cgroup: CgroupRef
    debt_bytes: int
    since_seconds: float


class DebtAges:
    """Since when each tenant has been in debt without a break, on the clock of the caller."""

    def __init__(self, since: Mapping[CgroupRef, float] | None = None) -> None:
        self.since = dict(since or {})

    def update(self, now_seconds: float, debts: Mapping[CgroupRef, int]) -> list[Debt]:
        """The debts that there are, the oldest first. What is paid has no age any more."""
        owing = {cgroup: owed for cgroup, owed in debts.items() if owed}
        self.since = {cgroup: self.since.get(cgroup, now_seconds) for cgroup in owing}
        found = (Debt(cgroup, owed, self.since[cgroup]) for cgroup, owed in owing.items())
        return sorted(found, key=lambda debt: (debt.since_seconds, by_path(debt.cgroup)))


def water_fill(amount: int, rooms: Sequence[int]) -> list[int]:
    """Parts of `amount`, one for each of `rooms` and not above it, that leave the least room as large as it can be.

    All the rooms that give are left at one level, in whole units: the first of them by order give one unit more where
    it does not come out even. Together they give `amount`, or all their room when that is less. O(n log n).
    """
    amount = min(amount, sum(rooms))
    if amount <= 0:
        return [0] * len(rooms)
    falling = sorted(rooms, reverse=True)
    sums = list(accumulate(falling))
    # With the `count` largest levelled to the next one's room: how much that takes.
    taken = [sums[count - 1] - count * falling[count] for count in range(1, len(falling))]
    count = bisect_right(taken, amount - 1) + 1
    level, short = divmod(sums[count - 1] - amount, count)
    # `short` rooms keep one unit above the level: the last by order, so that the first give more.
    parts = [max(0, room - level) for room in rooms]
    for index in reversed([index for index, room in enumerate(rooms) if room > level]):
        if short == 0:
            break
        parts[index] -= 1
        short -= 1
    return parts


def bear(rule: BearingRule, debts: Iterable[Debt], headroom: Mapping[CgroupRef, int]) -> dict[CgroupRef, int]:
    """What each tenant with `headroom` is to bear of `debts`, to the byte; the oldest debt is borne first.

    What is not in the answer stays with the pool.
    """
    borne: dict[CgroupRef, int] = {}
    if rule == "pool":
        return borne
    left = dict(headroom)
    for debt in debts:
        able = sorted(
            (cgroup for cgroup in left if cgroup != debt.cgroup and (rule == "headroom" or _kin(cgroup, debt.cgroup))),
            key=by_path,
        )
        parts = water_fill(debt.debt_bytes, [left[cgroup] for cgroup in able])
        for cgroup, part in zip(able, parts, strict=True):
            if part:
                left[cgroup] -= part
                borne[cgroup] = borne.get(cgroup, 0) + part
    return borne


def _kin(cgroup: CgroupRef, debtor: CgroupRef) -> bool:
    return is_below(cgroup.path, dirname(debtor.path))


def is_below(path: str, ancestor: str) -> bool:
    """Whether the cgroup at `path` is at `ancestor` or below it."""
    return ancestor in ("/", path) or path.startswith(f"{ancestor}/")
