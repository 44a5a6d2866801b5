"""How far each tenant may let its share grow before a pool refuses it: marks for sharedfs/accounting/quota.py. Pure.

A tenant may add what it can bear at once: its headroom, and that of every cgroup above it that has a budget. New pages
count in full until somebody shares them. Siblings below one ancestor have its headroom together: the pool counts it for
all of them, also for those that come and go between two settlements. With several pools each gets the whole headroom:
what is made in them together beyond it, in the half second until the next marks, is debt, and no more is allowed until
it is paid. To divide it would refuse what there is room for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.billing.hierarchy import above, at_and_below
from controller.settlement.settle import Position
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef, chain


@dataclass(frozen=True, slots=True)
class Marks:
    """What one pool is told: until where the even share of each tenant may grow, None at will; and until where the sum
    of all at and below a path may.
    """

    tenants: Mapping[CgroupRef, int | None]
    above: Mapping[str, int]


def marks(even_bytes: Mapping[CgroupRef, int], headrooms: Mapping[str, int]) -> dict[CgroupRef, int | None]:
    """For each tenant of a pool, by its even share there now: until where that may grow. None: at will.

    O(tenants x depth).
    """
    told: dict[CgroupRef, int | None] = {}
    for tenant, share_bytes in even_bytes.items():
        rooms = [headrooms[path] for path in chain(tenant.path) if path in headrooms]
        told[tenant] = share_bytes + min(rooms) if rooms else None
    return told


def headrooms_of(positions: Iterable[Position], room: Room) -> dict[str, int]:
    """How much more each cgroup with a budget that counts can bear at once, by path."""
    return {
        position.cgroup.path: headroom
        for position in positions
        if not position.report_only and (headroom := position.headroom_bytes(room)) is not None
    }


def marks_above(
    even_bytes: Mapping[CgroupRef, int], headrooms: Mapping[str, int], caps: Mapping[str, int]
) -> dict[str, int]:
    """For each cgroup above tenants of a pool that has a headroom, and each with a cap: until where all shares at and
    below it may grow together.

    `even_bytes` has nobody who is not in the books that the headrooms were worked out from.

    O(tenants x depth + paths x depth).
    """
    used = at_and_below(even_bytes)
    told = {}
    for path in (above(tenant.path for tenant in even_bytes) & headrooms.keys()) | caps.keys():
        rooms = [headrooms[place] for place in chain(path) if place in headrooms]
        rooms += [caps[place] - used[place] for place in chain(path) if place in caps]
        told[path] = used[path] + min(rooms)
    return told
