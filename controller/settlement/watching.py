"""Which limits yield to their tenants' own demand, from which usage on, and how far. Pure.

A watch is an order for the guard (`controller/service/guard.py`), which carries it out without the controller: when
what the tenant cannot give up reaches `threshold_bytes`, and its limits are still those that the controller wrote,
raise them. The values are in the journal before the guard knows them (I6).
"""

from dataclasses import dataclass

from controller.limits.types import Limits, is_above
from controller.settlement.settle import Position, is_watched, margin
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion


@dataclass(frozen=True, slots=True)
class Watch:
    """`lowered` are the limits to raise from, those in force and those that are being written; `raised` where to."""

    cgroup: CgroupRef
    threshold_bytes: int
    lowered: tuple[Limits, ...]
    raised: Limits


def watch(position: Position, intended: Limits, version: CgroupVersion, room: Room) -> Watch | None:
    """The watch over `position` whose limits are, or are about to be, `intended`; None when nothing yields."""
    budget_bytes = position.budget_bytes
    if position.report_only or budget_bytes is None:
        return None
    found, now = position.found, position.account.limits
    by_high = version is CgroupVersion.V2 and found.max_bytes is None and found.high_bytes is not None
    limit_bytes = intended.high_bytes if by_high else intended.max_bytes
    ceiling_bytes = position.ceiling_bytes(budget_bytes, room)
    if limit_bytes is None or not is_watched(limit_bytes, ceiling_bytes):
        return None
    high_bytes = None if found.high_bytes is None else position.ceiling_bytes(found.high_bytes, room)
    raised = Limits(None if by_high else ceiling_bytes, high_bytes, intended.swap_bytes)
    threshold_bytes = limit_bytes if by_high else limit_bytes - margin(position.room_bytes(room))
    lowered = (intended,) if now == intended or is_above(now.enforced_bytes, ceiling_bytes) else (intended, now)
    return Watch(position.cgroup, threshold_bytes, lowered, raised)
