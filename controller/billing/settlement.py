"""From shares to limits: what each tenant's limit should be, and how far it can go there now. Pure.

The kernel charges the pool for every page, so a tenant's bill is taken off its limit: target = budget - due, where
due = share - the pool's pages that the kernel charges to the tenant anyway (foreign ones, I2), rounded down to a page.

What `settle` promises, each a test of its own:

- *Exact.* A limit is the target where the tenant can bear it with a floor to spare (on v2, with two: see below).
- *Never above* the budget, nor any limit above what the manager set for it.
- *Never kills* (I5). A limit is not lowered below what the tenant cannot give up, plus a floor: anonymous and shared
  memory and the kernel's, all but page cache. v2's memory.max, which kills, is not lowered below usage plus the floor.
- *Shown.* What is so not taken off is debt: limit = target + debt.
- *Never fed.* A tenant in debt that grows does not get a higher limit for it; only a higher target raises a limit.
- *Convergent.* Settling again, once the limits are those intended, comes to rest: at once on v1, on v2 when
  memory.high, which has made the room for memory.max, is back where its manager wants it. Nothing is written twice.
- *Home.* With nothing due, the limits of a manager are those the manager set.
- *Raise before lower*, over all tenants: what one gives up is not needed by another that has not got it yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controller.limits.base import Account, Limits, Order, is_above, round_down, round_up
from sharedfs.kernel.cgroups import CgroupRef, CgroupVersion

FLOOR_BYTES = 1 << 20
"""Room left above what cannot be reclaimed. It covers what the kernel's statistics lag behind (64 pages a CPU)."""


@dataclass(frozen=True, slots=True)
class Position:
    """A tenant before settlement. `found` is what its manager set; `operator_bytes` counts when that is nothing."""

    cgroup: CgroupRef
    account: Account
    found: Limits
    operator_bytes: int | None
    due_bytes: int

    @property
    def budget_bytes(self) -> int | None:
        """The manager's limit, else the operator's budget, else None: then no limit is ever written."""
        return self.operator_bytes if self.found.enforced_bytes is None else self.found.enforced_bytes

    @property
    def target_bytes(self) -> int | None:
        """Where the limit belongs; negative when more is due than the budget holds."""
        return None if self.budget_bytes is None else aim(self.budget_bytes, self.due_bytes)

    def debt_bytes(self, limits: Limits) -> int:
        """What `limits` leave the tenant over its target."""
        if self.target_bytes is None or limits.enforced_bytes is None:
            return 0
        return max(0, limits.enforced_bytes - self.target_bytes)


def aim(ceiling_bytes: int, due_bytes: int) -> int:
    return round_down(min(ceiling_bytes, ceiling_bytes - due_bytes))


def reach(target_bytes: int, now_bytes: int | None, bearable_bytes: int, ceiling_bytes: int) -> int:
    """The limit nearest to the target that can be written: not lowered below `bearable_bytes`, not raised to it."""
    lowest_bytes = bearable_bytes if now_bytes is None else min(now_bytes, bearable_bytes)
    return min(round_down(ceiling_bytes), max(target_bytes, lowest_bytes))


def settle(position: Position, version: CgroupVersion, floor_bytes: int = FLOOR_BYTES) -> Limits:
    """The limits to write for `position` now."""
    found, account, now = position.found, position.account, position.account.limits
    bearable_bytes = round_up(account.unreclaimable_bytes + floor_bytes)
    if position.budget_bytes is None:
        return found
    if version is CgroupVersion.V1:
        target_bytes = aim(position.budget_bytes, position.due_bytes)
        return Limits(reach(target_bytes, now.max_bytes, bearable_bytes, position.budget_bytes))
    high_bytes = None
    if found.high_bytes is not None:
        high_target_bytes = aim(found.high_bytes, position.due_bytes)
        high_bytes = reach(high_target_bytes, now.high_bytes, bearable_bytes, found.high_bytes)
    hard_bytes = position.operator_bytes if found.enforced_bytes is None else found.max_bytes
    if hard_bytes is None:
        return Limits(None, high_bytes)
    target_bytes = aim(hard_bytes, position.due_bytes)
    usage_bytes = round_up(max(account.usage_bytes, account.unreclaimable_bytes) + floor_bytes)
    max_bytes = reach(target_bytes, now.max_bytes, usage_bytes, hard_bytes)
    if is_above(now.max_bytes, target_bytes):
        # memory.high is the way down: it makes the room below the target in which memory.max can follow. When that has
        # arrived, memory.high goes back to what its manager wants.
        room_bytes = reach(round_down(target_bytes - 2 * floor_bytes), now.high_bytes, bearable_bytes, hard_bytes)
        high_bytes = room_bytes if high_bytes is None else min(high_bytes, room_bytes)
    return Limits(max_bytes, high_bytes)


def plan(
    positions: Iterable[Position], version: CgroupVersion, floor_bytes: int = FLOOR_BYTES
) -> tuple[list[Order], list[Order]]:
    """The orders that settle `positions`: those that raise a limit, to be carried out first, and those that lower one.

    A tenant whose limits are where they should be, or as near as they can be, has no order.
    """
    raising: list[Order] = []
    lowering: list[Order] = []
    for position in positions:
        now = position.account.limits
        intended = settle(position, version, floor_bytes)
        if intended != now:
            order = Order(position.cgroup, now, intended)
            (raising if raises(order) else lowering).append(order)
    return raising, lowering


def raises(order: Order) -> bool:
    """Whether `order` lowers nothing: it then takes no reclaim and cannot be slow."""
    return not (
        is_above(order.now.max_bytes, order.intended.max_bytes)
        or is_above(order.now.high_bytes, order.intended.high_bytes)
    )
