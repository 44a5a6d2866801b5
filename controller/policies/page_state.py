"""What a policy knows about a page, for those that have a memory: the lab's counterpart of a sharing class.

A `Page` is immutable and says nothing about which page it is. So there are few different ones, and a rule that makes
one page of another is worked out once for all pages that are alike (`controller/lab/engine.py`). A policy fills in
what it looks at and leaves the rest as it is: the fewer fields differ, the fewer pages there are.

Whoever made and uses a page is known as the ledger knows it (docs/design.md, "The ledger"): its maker as long as that
lives, and two generations of touches. The rules are stated a second time here because a `Page` is a tuple that numbers
stand for, and a sharing class is not: `tests/property/test_page_rules.py` proves that they agree with
`sharedfs/ledger/sharing_class.py`.
"""

from enum import IntEnum
from functools import cache
from hashlib import blake2b
from typing import NamedTuple

from sharedfs.linux.cgroups import CgroupRef

Tenants = frozenset[CgroupRef]
NO_TENANTS: Tenants = frozenset()


@cache
def group_at(path: str) -> CgroupRef:
    """The account of a group above tenants: below zero, for a trace has numbers for tenants and not for their parents.

    A digest of the path, so that the same groups get the odd bytes in each run.
    """
    return CgroupRef(path, -1 - int.from_bytes(blake2b(path.encode(), digest_size=7).digest()))


ROOT = group_at("/")


class Kind(IntEnum):
    """What stands behind a page, which decides how it can be got rid of."""

    SHMEM = 0
    """tmpfs, memfd, SysV: nothing but swap."""
    CACHE = 1
    """A file on a disk: it can be dropped, and is read again."""
    PINNED = 2
    """Locked, or in use by a device: it stays where it is."""


class Place(IntEnum):
    ABSENT = 0
    RESIDENT = 1
    SWAPPED = 2
    EVICTED = 3


class Page(NamedTuple):
    """`owner` is the cgroup that is charged. `orphan`: it was removed, and the charge holds on to what is left of it.

    `parked`: whoever touches the page next is to be charged for it. `recent` and `older` touched it in this generation
    and in the one before, `mapped` have it in a page table. `file` tells files apart for policies that do. `maker`
    allocated it, for policies that go by use; None when it is gone.
    """

    kind: Kind
    place: Place = Place.ABSENT
    owner: CgroupRef | None = None
    orphan: bool = False
    parked: bool = False
    recent: Tenants = NO_TENANTS
    older: Tenants = NO_TENANTS
    mapped: Tenants = NO_TENANTS
    file: int | None = None
    maker: CgroupRef | None = None

    @property
    def payers(self) -> Tenants:
        """The users, and the maker while it lives."""
        users = self.recent | self.older | self.mapped
        return users if self.maker is None else users | {self.maker}

    @property
    def tenants(self) -> Tenants:
        """Everybody whose exit may change this page."""
        return self.payers if self.owner is None else self.payers | {self.owner}

    def absent(self) -> "Page":
        return Page(self.kind, file=self.file)

    def charged_to(self, owner: CgroupRef) -> "Page":
        """Resident, and `owner` pays from now on."""
        return self._replace(place=Place.RESIDENT, owner=owner, orphan=False, parked=False)

    # -- who made and who uses it: the ledger's rules

    def is_paid_by(self, tenant: CgroupRef) -> bool:
        return tenant == self.maker or tenant in self.recent or tenant in self.older or tenant in self.mapped

    def touched_by(self, tenant: CgroupRef) -> "Page":
        if tenant in self.recent:
            return self
        return self._used(self.recent | {tenant}, self.older - {tenant}, self.mapped)

    def mapped_by(self, tenant: CgroupRef) -> "Page":
        return self if tenant in self.mapped else self._used(self.recent, self.older, self.mapped | {tenant})

    def unmapped_by(self, tenant: CgroupRef) -> "Page":
        """Which counts as a touch: it could use the page until now."""
        if tenant not in self.mapped:
            return self
        return self._used(self.recent, self.older, self.mapped - {tenant}).touched_by(tenant)

    def without(self, tenant: CgroupRef) -> "Page":
        """`tenant` has neither made nor uses it any more. The charge is another matter."""
        if not self.is_paid_by(tenant):
            return self
        rest = self._used(self.recent - {tenant}, self.older - {tenant}, self.mapped - {tenant})
        return rest._replace(maker=None) if tenant == self.maker else rest

    def aged(self) -> "Page":
        """A generation has passed. The maker stays."""
        if not self.recent and not self.older:
            return self
        return self._used(NO_TENANTS, self.recent, self.mapped)

    def _used(self, recent: Tenants, older: Tenants, mapped: Tenants) -> "Page":
        """By position, for this is what a replay does most: `_replace` takes three times as long."""
        kind, place, owner, orphan, parked, _, _, _, file, maker = self
        return Page(kind, place, owner, orphan, parked, recent, older, mapped, file, maker)


def parent_of(cgroup: CgroupRef) -> CgroupRef:
    """The group above, as an account."""
    return group_at(cgroup.path.rstrip("/").rpartition("/")[0] or "/")
