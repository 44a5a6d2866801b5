"""From shares to limits: what each cgroup's limit should be, and how far it can go there now. Pure.

The kernel charges the pool for every page, so a bill is taken off a limit: target = budget - due, rounded down to a
page. What is due is the share of all tenants at or below the cgroup, less the pool's pages that the kernel charges to
it anyway, and what it bears of others' debt where the operator wants that. docs/settlement.md has the whole algorithm.

What `settle` promises, each a test of its own:

- *Exact.* A limit is the target where the tenant can bear it with a floor to spare (on v2, with two: see below).
- *Never above* what the manager set, nor raised above the budget.
- *Never kills* (I5). A limit is not lowered below what the tenant cannot give up, plus a floor: anonymous and shared
  memory and the kernel's, all but page cache, at its highest of late. v2's memory.max, which kills, is not lowered
  below usage plus the floor; memory.high keeps half a floor, so that it throttles before memory.max kills.
- *Paced.* What a lowering makes the tenant give up is at most `descent_bytes`.
- *Shown.* What is so not taken off is debt: limit = target + debt.
- *Never fed.* A tenant in debt that grows does not get a higher limit for it; only a higher target raises a limit.
- *Convergent.* Settling again, once the limits are those intended, comes to rest: at once on v1, on v2 when
  memory.high, which has made the room for memory.max, is back where its manager wants it. Nothing is written twice.
- *Home.* With nothing due, the limits of a manager are those the manager set.
- *Swap.* Where the manager bounds swap (v2), the same is done with the share that is in swap: never above what it set,
  not lowered below what is in swap plus a floor, the rest shown as debt in swap.
- *Raise before lower*, over all tenants: what one gives up is not needed by another that has not got it yet.
"""

from dataclasses import dataclass

from controller.limits.base import Account, Limits, Order, is_above, round_down, round_up
from sharedfs.kernel.cgroups import CgroupRef, CgroupVersion

FLOOR_BYTES = 1 << 20
"""Room left above what cannot be reclaimed. It covers what the kernel's statistics lag behind (64 pages a CPU)."""


@dataclass(frozen=True, slots=True)
class Position:
    """A cgroup before settlement. `found` is what its manager set; `operator_bytes` counts when that is nothing.

    `report_only`: the operator's budget counts in any case, and no limit is written for it. `steady_bytes` is what the
    cgroup has needed of late, at its highest and with a margin (`controller.billing.peaks`). `descent_bytes`: what it
    may be made to give up now; None is all. `swap_due_bytes` is the part of its bill that is in swap.
    """

    cgroup: CgroupRef
    account: Account
    found: Limits
    operator_bytes: int | None
    due_bytes: int
    report_only: bool = False
    steady_bytes: int = 0
    descent_bytes: int | None = None
    swap_due_bytes: int = 0

    @property
    def budget_bytes(self) -> int | None:
        """The manager's limit, else the operator's budget, else None: then no limit is ever written.

        On v1 no more than memory and swap may have together: the kernel refuses a memory limit above that.
        """
        budget_bytes = self.found.enforced_bytes
        if self.report_only or budget_bytes is None:
            budget_bytes = self.operator_bytes
        ceiling_bytes = self.account.ceiling_bytes
        if budget_bytes is None or ceiling_bytes is None:
            return budget_bytes
        return min(budget_bytes, ceiling_bytes)

    @property
    def target_bytes(self) -> int | None:
        """Where the limit belongs; negative when more is due than the budget holds."""
        return None if self.budget_bytes is None else aim(self.budget_bytes, self.due_bytes)

    @property
    def needed_bytes(self) -> int:
        """What no limit may be lowered to: what cannot be reclaimed, now or at its highest of late."""
        return max(self.account.unreclaimable_bytes, self.steady_bytes)

    @property
    def over_bytes(self) -> int:
        """What is used and due beyond the budget, whether a limit says so or not."""
        if self.budget_bytes is None:
            return 0
        return max(0, self.account.usage_bytes + max(0, self.due_bytes) - self.budget_bytes)

    def debt_bytes(self, limits: Limits) -> int:
        """What `limits` leave the tenant over its target."""
        if self.target_bytes is None or self.report_only or limits.enforced_bytes is None:
            return 0
        return max(0, limits.enforced_bytes - self.target_bytes)

    def swap_debt_bytes(self, limits: Limits) -> int:
        """What `limits` leave the tenant in swap over its manager's bound less what is due."""
        if self.found.swap_bytes is None or self.report_only or limits.swap_bytes is None:
            return 0
        return max(0, limits.swap_bytes - aim(self.found.swap_bytes, self.swap_due_bytes))

    def headroom_bytes(self, floor_bytes: int) -> int | None:
        """How much more could come due and still be borne at once; None without a budget: no limit is in the way."""
        if self.target_bytes is None:
            return None
        return max(0, self.target_bytes - round_up(self.needed_bytes + floor_bytes))


def aim(ceiling_bytes: int, due_bytes: int) -> int:
    return round_down(min(ceiling_bytes, ceiling_bytes - due_bytes))


def reach(target_bytes: int, now_bytes: int | None, bearable_bytes: int, ceiling_bytes: int | None) -> int:
    """The limit nearest to the target that can be written: not lowered below `bearable_bytes`, not raised to it.

    Nor is it above `ceiling_bytes`, what the manager set. An operator's budget is no such ceiling: where it is less
    than what is needed already, the rest is debt.
    """
    lowest_bytes = bearable_bytes if now_bytes is None else min(now_bytes, bearable_bytes)
    limit_bytes = max(target_bytes, lowest_bytes)
    return limit_bytes if ceiling_bytes is None else min(round_down(ceiling_bytes), limit_bytes)


def lowest_paced(position: Position, now_bytes: int | None) -> int:
    """Down to usage a limit takes nothing from the tenant and falls at once; below, by `descent_bytes`."""
    if position.descent_bytes is None:
        return 0
    usage_bytes = round_up(position.account.usage_bytes)
    start_bytes = usage_bytes if now_bytes is None else min(now_bytes, usage_bytes)
    return start_bytes - round_down(position.descent_bytes)


def settle(position: Position, version: CgroupVersion, floor_bytes: int = FLOOR_BYTES) -> Limits:
    """The limits to write for `position` now."""
    if position.report_only:
        return position.found
    if version is CgroupVersion.V1:
        return _settle_v1(position, floor_bytes)
    max_bytes, high_bytes = _settle_v2(position, floor_bytes)
    return Limits(max_bytes, high_bytes, _settle_swap(position, floor_bytes))


def _settle_v1(position: Position, floor_bytes: int) -> Limits:
    found, now = position.found, position.account.limits
    if position.budget_bytes is None:
        return found
    target_bytes = aim(position.budget_bytes, position.due_bytes)
    bearable_bytes = max(round_up(position.needed_bytes + floor_bytes), lowest_paced(position, now.max_bytes))
    return Limits(reach(target_bytes, now.max_bytes, bearable_bytes, found.max_bytes))


def _settle_v2(position: Position, floor_bytes: int) -> tuple[int | None, int | None]:
    """memory.max and memory.high."""
    found, account, now = position.found, position.account, position.account.limits
    if position.budget_bytes is None:
        return found.max_bytes, found.high_bytes
    needed_bytes = position.needed_bytes
    soft_bytes = max(round_up(needed_bytes + floor_bytes // 2), lowest_paced(position, now.high_bytes))
    high_bytes = None
    if found.high_bytes is not None:
        high_target_bytes = aim(found.high_bytes, position.due_bytes)
        high_bytes = reach(high_target_bytes, now.high_bytes, soft_bytes, found.high_bytes)
    hard_bytes = position.operator_bytes if found.enforced_bytes is None else found.max_bytes
    if hard_bytes is None:
        return None, high_bytes
    target_bytes = aim(hard_bytes, position.due_bytes)
    usage_bytes = round_up(max(account.usage_bytes, needed_bytes) + floor_bytes)
    max_bytes = reach(target_bytes, now.max_bytes, usage_bytes, found.max_bytes)
    if is_above(now.max_bytes, target_bytes):
        # memory.high is the way down: it makes the room below the target in which memory.max can follow. When that has
        # arrived, memory.high goes back to what its manager wants.
        room_bytes = reach(round_down(target_bytes - 2 * floor_bytes), now.high_bytes, soft_bytes, found.max_bytes)
        high_bytes = room_bytes if high_bytes is None else min(high_bytes, room_bytes)
    return max_bytes, high_bytes


def _settle_swap(position: Position, floor_bytes: int) -> int | None:
    """memory.swap.max. An operator's budget is for memory: where the manager bounds no swap, nor do we."""
    ceiling_bytes, account = position.found.swap_bytes, position.account
    if ceiling_bytes is None:
        return None
    target_bytes = aim(ceiling_bytes, position.swap_due_bytes)
    bearable_bytes = round_up(account.swap_usage_bytes + floor_bytes)
    return reach(target_bytes, account.limits.swap_bytes, bearable_bytes, ceiling_bytes)


def raises(order: Order) -> bool:
    """Whether `order` lowers nothing: it then takes no reclaim and cannot be slow."""
    return not (
        is_above(order.now.max_bytes, order.intended.max_bytes)
        or is_above(order.now.high_bytes, order.intended.high_bytes)
        or is_above(order.now.swap_bytes, order.intended.swap_bytes)
    )
