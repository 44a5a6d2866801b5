"""What tenants cost the cgroups above them: a budget counts for all that is below it. Pure.

The kernel enforces the limit of a cgroup on itself and on everything below, and so do we: what is due of a cgroup is
what all tenants at or below it owe. So a pod's limit falls by what its containers share, and no container is promised
what the pod has not got, nor what its siblings' shares have taken already.

A pool's own cgroup can be below such an ancestor (a slice with a limit, in which pool and tenants run). The kernel then
charges the pool's pages to the ancestor already, so what tenants pay for that pool is not due there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from posixpath import dirname

from sharedfs.linux.cgroups import CgroupRef, chain


def above(paths: Iterable[str]) -> set[str]:
    """The proper ancestors of all of `paths`."""
    return {ancestor for path in paths for ancestor in chain(dirname(path))}


def at_and_below(parts: Mapping[CgroupRef, int]) -> Counter[str]:
    """The sums of what each has, at the path of each and at all above. O(tenants x depth)."""
    sums = Counter[str]()
    for cgroup, part in parts.items():
        for path in chain(cgroup.path):
            sums[path] += part
    return sums


def due_at(
    due_by_pool: Mapping[str, Mapping[CgroupRef, int]], pool_cgroups: Mapping[str, str], paths: Iterable[str]
) -> dict[str, int]:
    """What is due at each of `paths`: of the tenants there and below, for pools that are not below it themselves.

    `due_by_pool`: bytes by pool and tenant. `pool_cgroups`: where each pool's own cgroup is, as far as that is known.
    O(pools x tenants x depth).
    """
    due = Counter[str](dict.fromkeys(paths, 0))
    for pool, by_tenant in due_by_pool.items():
        own = frozenset(chain(pool_cgroups.get(pool, "/")))
        for tenant, due_bytes in by_tenant.items():
            for path in chain(tenant.path):
                if path in due and path not in own:
                    due[path] += due_bytes
    return dict(due)
