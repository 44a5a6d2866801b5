"""The operator's caps: how far the share of a tenant, with all below it, may grow in a pool. Pure.

A cap is told to a pool as a mark, like what budgets leave (`admission.py`): the lower one counts, also for all tenants
below it together.
"""

from collections.abc import Mapping

from controller.billing.hierarchy import at_and_below
from sharedfs.common.units import Part
from sharedfs.linux.cgroups import CgroupRef, chain

CapOrders = Mapping[tuple[str, str | None], Part]
"""By cgroup path and pool; None is for every pool that has none of its own."""


def caps_in(pool: str, size_bytes: int | None, orders: CapOrders) -> dict[str, int]:
    """The caps in one pool by cgroup path. Percents need its size, which an older daemon does not tell (None)."""
    parts = {path: part for (path, of_pool), part in orders.items() if of_pool is None}
    parts |= {path: part for (path, of_pool), part in orders.items() if of_pool == pool}
    return {
        path: part.of(size_bytes or 0) for path, part in parts.items() if size_bytes is not None or not part.is_percent
    }


def capped(
    marks: Mapping[CgroupRef, int | None], even_bytes: Mapping[CgroupRef, int], caps: Mapping[str, int]
) -> dict[CgroupRef, int | None]:
    """`marks` as far as `caps` let tenants grow; `even_bytes` are their even shares. O(tenants x depth)."""
    if not caps:
        return dict(marks)
    used = at_and_below(even_bytes)
    told: dict[CgroupRef, int | None] = {}
    for tenant, mark in marks.items():
        own = [max(0, even_bytes[tenant] + caps[path] - used[path]) for path in chain(tenant.path) if path in caps]
        told[tenant] = min((each for each in (mark, *own) if each is not None), default=None)
    return told
