"""How far each tenant may let its share grow before a pool refuses it: marks for sharedfs/accounting/quota.py. Pure.

A tenant may add what it can bear at once: its headroom, and that of every cgroup above it that has a budget. New pages
count in full until somebody shares them. With several pools each gets the whole headroom, and so do siblings below one
ancestor: what they make together beyond it, in the half second until the next marks, is debt, and no more is allowed
until it is paid. To divide it would refuse what there is room for.
"""

from collections.abc import Iterable, Mapping

from controller.billing.hierarchy import chain
from controller.settlement.settle import Position
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef


def marks(
    even_bytes: Mapping[CgroupRef, int], positions: Iterable[Position], room: Room
) -> dict[CgroupRef, int | None]:
    """For each tenant of a pool, by its even share there now: until where that may grow. None: at will.

    O(tenants x depth).
    """
    headrooms = {
        position.cgroup.path: headroom
        for position in positions
        if not position.report_only and (headroom := position.headroom_bytes(room)) is not None
    }
    told: dict[CgroupRef, int | None] = {}
    for tenant, share_bytes in even_bytes.items():
        rooms = [headrooms[path] for path in chain(tenant.path) if path in headrooms]
        told[tenant] = share_bytes + min(rooms) if rooms else None
    return told
