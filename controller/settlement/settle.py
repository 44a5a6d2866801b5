"""From shares to limits: what each cgroup's limit should be, and how far it can go there now. Pure.

The kernel charges the pool for every page, so a bill is taken off a limit: target = budget - due, rounded down to a
page. What is due is the share of all tenants at or below the cgroup, less the pool's pages that the kernel charges to
it anyway, and what it bears of others' debt where the operator wants that. docs/settlement.md has the whole algorithm.

What `settle` promises, each a test of its own:

- *Exact.* A limit is the target where the tenant can bear it with its room (`sharedfs.common.headroom`) to spare.
- *Never above* what the manager set, nor raised above the budget.
- *Never kills* (I5). A limit is not lowered below what the tenant cannot give up, plus its room: anonymous and shared
  memory and the kernel's, all but page cache, at its highest of late. v2's memory.max, which kills, is not lowered
  below usage plus a slack either; memory.high stays a slack lower, so that it throttles before memory.max kills.
- *Paced.* What a lowering makes the tenant give up is at most `descent_bytes`.
- *Shown.* What is so not taken off is debt: limit = target + debt.
- *Never fed.* A tenant in debt that grows does not get a higher limit for it; only a higher target raises a limit.
- *Convergent.* Settling again, once the limits are those intended, comes to rest: at once on v1, on v2 when
  memory.high, which has made the room for memory.max, is back where its manager wants it. Nothing is written twice.
- *Home.* With nothing due, the limits of a manager are those the manager set.
- *Yields.* What others' acts put on the tenant (`inherited_bytes`), and what it has needed within the hour, are given
  back on demand, before the kernel kills: `ceiling_bytes` is how far. The guard does it.
- *Swap.* Where the manager bounds swap (v2), the same is done with the share that is in swap: never above what it set,
  not lowered below what is in swap plus a slack, the rest shown as debt in swap.
- *Raise before lower*, over all tenants: what one gives up is not needed by another that has not got it yet.
"""

from dataclasses import dataclass

from controller.limits.types import Account, Limits, Order, is_above, round_down, round_up
from sharedfs.common.headroom import DEFAULT_ROOM, Room
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion

SLACK_BYTES = 1 << 20
"""v2: between usage and memory.max, and between memory.high and memory.max, at most. It covers what the kernel's
statistics lag behind (64 pages a CPU), and what a tenant can take between a reading and a write."""

WATCHED_BYTES = 64 << 10
"""A smaller part of a limit is not worth a watch."""


@dataclass(frozen=True, slots=True)
class Position:
    """A cgroup before settlement. `found` is what its manager set; `operator_bytes` counts when that is nothing.

    `report_only`: the operator's budget counts in any case, and no limit is written for it. `steady_bytes` is what the
    cgroup has needed of late, at its highest and with a margin, `remembered_bytes` the highest of the last hour
    (`controller.settlement.peaks`). `descent_bytes`: what it may be made to give up now; None is all. `swap_due_bytes`
    is the part of its bill that is in swap. Of what is due, `inherited_bytes` come from others' acts, and `fresh_bytes`
    from touches of late (`controller.billing.inheritance`).
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
    inherited_bytes: int = 0
    fresh_bytes: int = 0
    remembered_bytes: int = 0

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

    def room_bytes(self, room: Room) -> int:
        """What is left above `needed_bytes`."""
        return 0 if self.budget_bytes is None else room.of(self.budget_bytes)

    def headroom_bytes(self, room: Room) -> int | None:
        """How much more could come due and still be borne at once; None without a budget: no limit is in the way."""
        if self.target_bytes is None:
            return None
        kept_bytes = max(self.needed_bytes, self.remembered_bytes) + self.room_bytes(room)
        return max(0, self.target_bytes - round_up(kept_bytes))

    @property
    def own_due_bytes(self) -> int:
        """What is due by the tenant's own acts, as far as it has had the time to know of them."""
        return self.due_bytes - max(0, min(self.inherited_bytes + self.fresh_bytes, self.due_bytes))

    def ceiling_bytes(self, limit_bytes: int, room: Room) -> int:
        """How far the tenant's own demand may raise a limit that its manager set to `limit_bytes`."""
        known_bytes = round_up(self.remembered_bytes + min(SLACK_BYTES, self.room_bytes(room)))
        return min(round_down(limit_bytes), max(aim(limit_bytes, self.own_due_bytes), known_bytes))


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


def settle(position: Position, version: CgroupVersion, room: Room = DEFAULT_ROOM) -> Limits:
    """The limits to write for `position` now."""
    if position.report_only:
        return position.found
    if version is CgroupVersion.V1:
        return _settle_v1(position, room)
    max_bytes, high_bytes = _settle_v2(position, room)
    return Limits(max_bytes, high_bytes, _settle_swap(position))


def _settle_v1(position: Position, room: Room) -> Limits:
    found, now = position.found, position.account.limits
    if position.budget_bytes is None:
        return found
    target_bytes = aim(position.budget_bytes, position.due_bytes)
    needed_bytes = position.needed_bytes + position.room_bytes(room)
    bearable_bytes = max(round_up(needed_bytes), lowest_paced(position, now.max_bytes))
    return Limits(reach(target_bytes, now.max_bytes, bearable_bytes, found.max_bytes))


def _settle_v2(position: Position, room: Room) -> tuple[int | None, int | None]:
    """memory.max and memory.high."""
    found, account, now = position.found, position.account, position.account.limits
    if position.budget_bytes is None:
        return found.max_bytes, found.high_bytes
    room_bytes = position.room_bytes(room)
    needed_bytes, slack_bytes = position.needed_bytes + room_bytes, min(SLACK_BYTES, room_bytes // 2)
    soft_bytes = max(round_up(needed_bytes - slack_bytes), lowest_paced(position, now.high_bytes))
    high_bytes = None
    if found.high_bytes is not None:
        high_target_bytes = aim(found.high_bytes, position.due_bytes)
        high_bytes = reach(high_target_bytes, now.high_bytes, soft_bytes, found.high_bytes)
    hard_bytes = position.operator_bytes if found.enforced_bytes is None else found.max_bytes
    if hard_bytes is None:
        return None, high_bytes
    target_bytes = aim(hard_bytes, position.due_bytes)
    bearable_bytes = round_up(max(account.usage_bytes + slack_bytes, needed_bytes))
    max_bytes = reach(target_bytes, now.max_bytes, bearable_bytes, found.max_bytes)
    if is_above(now.max_bytes, target_bytes):
        # memory.high is the way down: it makes the room below the target in which memory.max can follow. When that has
        # arrived, memory.high goes back to what its manager wants.
        way_bytes = reach(round_down(target_bytes - 2 * slack_bytes), now.high_bytes, soft_bytes, found.max_bytes)
        high_bytes = way_bytes if high_bytes is None else min(high_bytes, way_bytes)
    if is_watched(max_bytes, position.ceiling_bytes(hard_bytes, room)):
        # The kernel throttles in the margin below memory.max, and so gives the guard the time to raise both.
        margin_bytes = round_down(max_bytes - margin(room_bytes))
        high_bytes = margin_bytes if high_bytes is None else min(high_bytes, margin_bytes)
    return max_bytes, high_bytes


def margin(room_bytes: int) -> int:
    """So far below a limit that yields the guard is called: by then the tenant has used half of its room."""
    return round_up(room_bytes // 2)


def is_watched(limit_bytes: int | None, ceiling_bytes: int) -> bool:
    """Whether the guard has anything to give."""
    return limit_bytes is not None and ceiling_bytes - limit_bytes >= WATCHED_BYTES


def _settle_swap(position: Position) -> int | None:
    """memory.swap.max. An operator's budget is for memory: where the manager bounds no swap, nor do we."""
    ceiling_bytes, account = position.found.swap_bytes, position.account
    if ceiling_bytes is None:
        return None
    target_bytes = aim(ceiling_bytes, position.swap_due_bytes)
    bearable_bytes = round_up(account.swap_usage_bytes + SLACK_BYTES)
    return reach(target_bytes, account.limits.swap_bytes, bearable_bytes, ceiling_bytes)


def raises(order: Order) -> bool:
    """Whether `order` lowers nothing: it then takes no reclaim and cannot be slow."""
    return not (
        is_above(order.now.max_bytes, order.intended.max_bytes)
        or is_above(order.now.high_bytes, order.intended.high_bytes)
        or is_above(order.now.swap_bytes, order.intended.swap_bytes)
    )
