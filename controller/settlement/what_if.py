"""What would be if a tenant exited now: who would pay what, whose limit would fall, what would be freed for nobody."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from controller.billing.bill import due_bytes, make_bill, swap_due_bytes
from controller.billing.holdings import Books, without
from controller.policies.policy import Policy
from controller.policies.split import by_path
from controller.settlement.settle import Position, settle
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion


@dataclass(frozen=True, slots=True)
class Survivor:
    cgroup: CgroupRef
    share_before_bytes: int
    share_after_bytes: int
    limit_before_bytes: int | None
    limit_after_bytes: int | None


@dataclass(frozen=True, slots=True)
class Exit:
    """`freed_bytes` are used by the tenant alone: nobody would pay for them, and they stay until they are deleted."""

    freed_bytes: int
    survivors: tuple[Survivor, ...]


def what_if_exit(
    tenant: CgroupRef,
    books: Collection[Books],
    policy: Policy,
    positions: Mapping[CgroupRef, Position],
    version: CgroupVersion,
    room: Room,
) -> Exit:
    """The exit of `tenant` from `books`, on paper. `positions` are the tenants' as they stand now."""
    before = make_bill(books, positions, policy)
    rest = positions.keys() - {tenant}
    after = make_bill([without(pool, {tenant}) for pool in books], rest, policy)
    survivors = []
    for cgroup in sorted(rest, key=by_path):
        position = positions[cgroup]
        # When settlement is through, page cache has made way.
        account = replace(position.account, usage_bytes=position.account.unreclaimable_bytes)
        later = replace(
            position, account=account, due_bytes=due_bytes(after, cgroup), swap_due_bytes=swap_due_bytes(after, cgroup)
        )
        survivors.append(
            Survivor(
                cgroup,
                before.tenants[cgroup].share_bytes,
                after.tenants[cgroup].share_bytes,
                position.account.limits.enforced_bytes,
                settle(later, version, room).enforced_bytes,
            )
        )
    return Exit(after.unclaimed_bytes - before.unclaimed_bytes, tuple(survivors))
