"""All orders of a round at once and as far as they go: what the planner spreads over time."""

from collections.abc import Iterable

from controller.limits.types import Order
from controller.settlement.settle import Position, raises, settle
from sharedfs.common.headroom import DEFAULT_ROOM, Room
from sharedfs.linux.cgroups import CgroupVersion


def plan(
    positions: Iterable[Position], version: CgroupVersion, room: Room = DEFAULT_ROOM
) -> tuple[list[Order], list[Order]]:
    """The orders that settle `positions`: those that raise a limit, to be carried out first, and those that lower one.

    A tenant whose limits are where they should be, or as near as they can be, has no order.
    """
    raising: list[Order] = []
    lowering: list[Order] = []
    for position in positions:
        now = position.account.limits
        intended = settle(position, version, room)
        if intended != now:
            order = Order(position.cgroup, now, intended)
            (raising if raises(order) else lowering).append(order)
    return raising, lowering
