"""The bill: who pays how much of what the pools hold."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from controller.billing.holdings import Beside, Books
from controller.policies.policy import Policy
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's line over all pools.

    `used_bytes` is its share if nobody else paid for the pages that it allocated or uses; `foreign_bytes` the pool's
    pages that the kernel charges to it (I2), whoever uses them. `swapped_bytes` are the part of `share_bytes`,
    `foreign_swapped_bytes` the part of `foreign_bytes`, that is in swap and takes no memory. `detached_bytes` are the
    part of `share_bytes` that is in no file any more, `inode_bytes` the part that names and inodes take.
    """

    share_bytes: int = 0
    used_bytes: int = 0
    foreign_bytes: int = 0
    swapped_bytes: int = 0
    foreign_swapped_bytes: int = 0
    detached_bytes: int = 0
    inode_bytes: int = 0

    def __add__(self, other: "TenantShare") -> "TenantShare":
        return TenantShare(
            self.share_bytes + other.share_bytes,
            self.used_bytes + other.used_bytes,
            self.foreign_bytes + other.foreign_bytes,
            self.swapped_bytes + other.swapped_bytes,
            self.foreign_swapped_bytes + other.foreign_swapped_bytes,
            self.detached_bytes + other.detached_bytes,
            self.inode_bytes + other.inode_bytes,
        )


@dataclass(frozen=True, slots=True)
class Bill:
    pool_resident_bytes: int
    unclaimed_bytes: int
    foreign_bytes: int
    swapped_bytes: int
    tenants: Mapping[CgroupRef, TenantShare]
    detached_bytes: int = 0
    inode_bytes: int = 0

    def check(self) -> None:
        """Raises BrokenInvariant when shares and unclaimed bytes are not what is resident, and beside files (I1)."""
        shares_bytes = sum(line.share_bytes for line in self.tenants.values())
        held_bytes = self.pool_resident_bytes + self.detached_bytes + self.inode_bytes
        if shares_bytes + self.unclaimed_bytes != held_bytes:
            raise BrokenInvariant(f"I1: shares {shares_bytes} + unclaimed do not make what is there: {self}")
        for tenant, line in self.tenants.items():
            parts = (
                (line.swapped_bytes, line.share_bytes),
                (line.foreign_swapped_bytes, line.foreign_bytes),
                (line.detached_bytes + line.inode_bytes, line.share_bytes),
            )
            if line.used_bytes < 0 or any(not 0 <= part <= whole for part, whole in parts):
                raise BrokenInvariant(f"I1: {tenant} has a line that no books give: {line}")


def add_up(bills: Collection[Bill], tenants: Iterable[CgroupRef]) -> Bill:
    """The bill of all pools from the bills of each, with a line for each of `tenants` and for everybody on one.

    The same as of all their books at once: a class is of one pool, and is rounded once. O(lines).
    """
    lines = dict.fromkeys(tenants, TenantShare())
    for bill in bills:
        for tenant, line in bill.tenants.items():
            lines[tenant] = lines.get(tenant, TenantShare()) + line
    return Bill(
        sum(bill.pool_resident_bytes for bill in bills),
        sum(bill.unclaimed_bytes for bill in bills),
        sum(bill.foreign_bytes for bill in bills),
        sum(bill.swapped_bytes for bill in bills),
        lines,
        sum(bill.detached_bytes for bill in bills),
        sum(bill.inode_bytes for bill in bills),
    )


def make_bill(books: Iterable[Books], tenants: Iterable[CgroupRef], policy: Policy) -> Bill:
    """The bill of all pools' `books`, with a line for each of `tenants` and for everybody else who pays.

    O(classes x payers). Raises BrokenInvariant when `policy` claims to conserve and does not (I1).
    """
    share: Counter[CgroupRef] = Counter()
    used: Counter[CgroupRef] = Counter()
    charged: Counter[CgroupRef] = Counter()
    swapped: Counter[CgroupRef] = Counter()
    charged_swap: Counter[CgroupRef] = Counter()
    beside: dict[Beside, Counter[CgroupRef]] = {what: Counter() for what in Beside}
    beside_bytes: Counter[Beside] = Counter()
    resident_bytes = unclaimed_bytes = foreign_bytes = swapped_bytes = 0
    for pool in books:
        for held, held_bytes in pool.items():
            parts = policy.charge(held, held_bytes)
            share.update(parts)
            used.update(dict.fromkeys(held.payers, held_bytes))
            if held.beside is None:
                resident_bytes += held_bytes
            else:
                beside[held.beside].update(parts)
                beside_bytes[held.beside] += held_bytes
            if held.swapped:
                swapped.update(parts)
                swapped_bytes += held_bytes
            if not parts:
                unclaimed_bytes += held_bytes
            if held.foreign:
                foreign_bytes += held_bytes
                if held.owner is not None:
                    charged[held.owner] += held_bytes
                    charged_swap[held.owner] += held_bytes if held.swapped else 0
    listed = {*tenants, *share, *used, *charged}
    lines = {
        tenant: TenantShare(
            share[tenant],
            used[tenant],
            charged[tenant],
            swapped[tenant],
            charged_swap[tenant],
            beside[Beside.DETACHED][tenant],
            beside[Beside.INODES][tenant],
        )
        for tenant in listed
    }
    bill = Bill(
        resident_bytes,
        unclaimed_bytes,
        foreign_bytes,
        swapped_bytes,
        lines,
        beside_bytes[Beside.DETACHED],
        beside_bytes[Beside.INODES],
    )
    if policy.conserves:
        bill.check()
    return bill


def due_bytes(bill: Bill, tenant: CgroupRef) -> int:
    """What is to come off the tenant's memory limit: its share of what is in memory, less what the kernel charges to it
    anyway."""
    line = bill.tenants[tenant]
    return line.share_bytes - line.foreign_bytes - swap_due_bytes(bill, tenant)


def swap_due_bytes(bill: Bill, tenant: CgroupRef) -> int:
    """What is to come off the tenant's swap limit: its share of what is in swap, less what the kernel charges to it."""
    line = bill.tenants[tenant]
    return line.swapped_bytes - line.foreign_swapped_bytes


def due_by_pool(part: Callable[[Bill, CgroupRef], int], bills: Mapping[str, Bill]) -> dict[str, dict[CgroupRef, int]]:
    """`due_bytes` or `swap_due_bytes` of each tenant on each pool's bill."""
    return {pool: {tenant: part(bill, tenant) for tenant in bill.tenants} for pool, bill in bills.items()}
