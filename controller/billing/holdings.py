"""What a pool's feed says, with tenants in place of its numbers: bytes per sharing class.

Numbers are a pool's own and mean nothing outside one answer; a tenant is its cgroup, the same in every pool.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sharedfs.api.types import NOBODY, ClassHolding, Holdings, TenantRef
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef


class Beside(StrEnum):
    """What a pool holds beside the pages of its files. In memory, and one tenant's, or nobody's."""

    DETACHED = "in no file"
    """Pages that are in no file any more."""
    INODES = "names and inodes"
    """The kernel's memory of them, beyond what comes with the pool's size."""


@dataclass(frozen=True, slots=True)
class SharingClass:
    """Pages of one pool with one owner and the same payers, either in memory or in swap.

    `owner` allocated them, and is one of the `payers`; None when it is gone. `beside` says what is no page of a file.
    """

    pool: str
    owner: CgroupRef | None
    payers: frozenset[CgroupRef]
    mapped: frozenset[CgroupRef]
    foreign: bool
    swapped: bool = False
    beside: Beside | None = None


Books = Mapping[SharingClass, int]
"""Bytes per class."""

_NO_HEIRS: Mapping[CgroupRef, CgroupRef] = {}


@dataclass(frozen=True, slots=True)
class Unasked:
    """What a tenant came to use by no act of its own, counted up: pages that it was made the owner of, and others'."""

    handed_bytes: int = 0
    added_bytes: int = 0

    def since(self, before: "Unasked") -> "Unasked":
        """What came since then. Who counts less than before counts from the start of another daemon."""
        if self.handed_bytes < before.handed_bytes or self.added_bytes < before.added_bytes:
            return self
        return Unasked(self.handed_bytes - before.handed_bytes, self.added_bytes - before.added_bytes)


@dataclass(frozen=True, slots=True)
class PoolBooks:
    """One answer of a pool: its books, and the even shares of all its live tenants, those too that use nothing.

    `cgroup` is the pool's own, which the kernel charges for its pages; "/" when that is not known. `unasked` has the
    tenants that came to use something by no act of their own. `size_bytes` is the pool's, None of an older daemon.
    """

    pool: str
    books: Books
    even_bytes: Mapping[CgroupRef, int]
    cgroup: str
    unasked: Mapping[CgroupRef, Unasked] = field(default_factory=dict)
    size_bytes: int | None = None

    @property
    def tenants(self) -> frozenset[CgroupRef]:
        return frozenset(self.even_bytes)


def cgroup_of(tenant: TenantRef) -> CgroupRef:
    return CgroupRef(tenant.path, tenant.inode)


def read_unasked(tenants: Iterable[TenantRef]) -> dict[CgroupRef, Unasked]:
    return {
        cgroup_of(tenant): Unasked(tenant.handed_bytes, tenant.added_bytes)
        for tenant in tenants
        if tenant.handed_bytes or tenant.added_bytes
    }


def read_classes(pool: str, tenants: Iterable[TenantRef], rows: Iterable[ClassHolding]) -> Books:
    """The books in one answer of `pool`. Rows that are the same class become one, so that it is rounded once.

    Raises BrokenInvariant when a row names a tenant that the answer does not list.
    """
    known = {tenant.id: cgroup_of(tenant) for tenant in tenants}
    books: Counter[SharingClass] = Counter()
    for row in rows:
        try:
            books[
                SharingClass(
                    pool,
                    None if row.owner == NOBODY else known[row.owner],
                    frozenset(known[payer] for payer in row.payers),
                    frozenset(known[user] for user in row.mapped),
                    row.foreign,
                    row.swapped,
                )
            ] += row.bytes
        except KeyError as missing:
            raise BrokenInvariant(f"pool {pool} bills tenant number {missing} that it does not list: {row}") from None
    return books


def class_beside(pool: str, what: Beside, payer: CgroupRef | None) -> SharingClass:
    """What `payer` pays for, or nobody, and is no page of a file of `pool`."""
    payers = frozenset(() if payer is None else (payer,))
    return SharingClass(pool, payer, payers, frozenset(), foreign=False, beside=what)


def read_beside(holdings: Holdings) -> Books:
    """What is no page of a file, by who pays. Of a tenant that has exited meanwhile it is nobody's."""
    known = {tenant.id: cgroup_of(tenant) for tenant in holdings.tenants}
    books: Counter[SharingClass] = Counter()
    for what, parts in ((Beside.DETACHED, holdings.detached), (Beside.INODES, holdings.inodes)):
        for part in parts:
            books[class_beside(holdings.pool, what, known.get(part.tenant))] += part.bytes
    return books


def read_holdings(holdings: Holdings) -> Books:
    """A pool's whole books. Raises BrokenInvariant when they do not add up to what is resident (I1)."""
    books = read_classes(holdings.pool, holdings.tenants, holdings.classes)
    total_bytes = sum(books.values())
    if total_bytes != holdings.resident_bytes:
        raise BrokenInvariant(
            f"I1: pool {holdings.pool} has {holdings.resident_bytes} bytes resident"
            f" and {total_bytes} in its classes, at sequence {holdings.sequence}"
        )
    return {**books, **read_beside(holdings)}


def without(books: Books, gone: Set[CgroupRef], heirs: Mapping[CgroupRef, CgroupRef] = _NO_HEIRS) -> Books:
    """The same bytes when `gone` have exited: their classes merge into those without them (I4). O(classes).

    What one of them owned and nobody uses is its heir's, as the pool will have it.
    """
    if not gone:
        return books
    left: Counter[SharingClass] = Counter()
    for held, held_bytes in books.items():
        owner, payers = held.owner, held.payers - gone
        if owner is not None and owner in gone:
            heir = heirs.get(owner)
            owner, payers = None, payers or (frozenset() if heir is None else frozenset((heir,)))
        left[replace(held, owner=owner, payers=payers, mapped=held.mapped - gone)] += held_bytes
    return left
