"""The bill: who pays how much of what the pools hold."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.billing.books import Books
from controller.billing.policies import Policy
from sharedfs.errors import BrokenInvariant
from sharedfs.kernel.cgroups import CgroupRef


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's line over all pools.

    `used_bytes` is its share if it were alone with the pages it uses; `foreign_bytes` the pool's pages that the kernel
    charges to it (I2), whoever uses them.
    """

    share_bytes: int = 0
    used_bytes: int = 0
    foreign_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bill:
    pool_resident_bytes: int
    unclaimed_bytes: int
    foreign_bytes: int
    tenants: Mapping[CgroupRef, TenantShare]

    def check(self) -> None:
        """Raises BrokenInvariant when shares and unclaimed bytes are not what is resident (I1)."""
        shares_bytes = sum(line.share_bytes for line in self.tenants.values())
        if shares_bytes + self.unclaimed_bytes != self.pool_resident_bytes:
            raise BrokenInvariant(f"I1: shares {shares_bytes} + unclaimed do not make what is resident: {self}")
        for tenant, line in self.tenants.items():
            if min(line.share_bytes, line.used_bytes, line.foreign_bytes) < 0:
                raise BrokenInvariant(f"I1: {tenant} has a negative line: {line}")


def make_bill(books: Iterable[Books], tenants: Iterable[CgroupRef], policy: Policy) -> Bill:
    """The bill of all pools' `books`, with a line for each of `tenants` and for everybody else who pays.

    O(classes x users). Raises BrokenInvariant when `policy` does not conserve (I1).
    """
    share: Counter[CgroupRef] = Counter()
    used: Counter[CgroupRef] = Counter()
    charged: Counter[CgroupRef] = Counter()
    resident_bytes = unclaimed_bytes = foreign_bytes = 0
    for pool in books:
        for held, held_bytes in pool.items():
            parts = policy.charge(held, held_bytes)
            share.update(parts)
            used.update(dict.fromkeys(held.users, held_bytes))
            resident_bytes += held_bytes
            if not parts:
                unclaimed_bytes += held_bytes
            if held.foreign:
                foreign_bytes += held_bytes
                if held.owner is not None:
                    charged[held.owner] += held_bytes
    listed = {*tenants, *share, *used, *charged}
    lines = {tenant: TenantShare(share[tenant], used[tenant], charged[tenant]) for tenant in listed}
    bill = Bill(resident_bytes, unclaimed_bytes, foreign_bytes, lines)
    bill.check()
    return bill
