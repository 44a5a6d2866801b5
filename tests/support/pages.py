"""A few pages under one policy: what a scene of the article looks like when it is played by hand."""

from collections import Counter
from collections.abc import Callable

from controller.policies.page_state import Kind, Page, Place, group_at
from controller.policies.policy import Policy
from sharedfs.linux.cgroups import CgroupRef

A, B, C = (CgroupRef(f"/tenants/{name}", inode) for inode, name in enumerate("abc", 1))
PARENT, ROOT = group_at("/tenants"), group_at("/")
PAGE = 4096


class Scene:
    """`pages` pages of one kind. Every method is an event that happens to all of them, or to those that are named."""

    def __init__(self, policy: Policy, pages: int = 4, kind: Kind = Kind.SHMEM) -> None:
        self.policy = policy
        self.pages = [Page(kind)] * pages

    def _all(self, rule: Callable[[Page], Page], which: range | None) -> None:
        for number in range(len(self.pages)) if which is None else which:
            self.pages[number] = rule(self.pages[number])

    def allocate(self, tenant: CgroupRef, which: range | None = None) -> None:
        self._all(lambda page: self.policy.allocate(page, tenant), which)

    def touch(self, tenant: CgroupRef, which: range | None = None) -> None:
        self._all(lambda page: self.policy.touch(page, tenant), which)

    def map(self, tenant: CgroupRef, which: range | None = None) -> None:
        self._all(lambda page: self.policy.map(page, tenant), which)

    def unmap(self, tenant: CgroupRef) -> None:
        self._all(lambda page: self.policy.unmap(page, tenant), None)

    def swap(self, which: range | None = None) -> None:
        self._all(self.policy.swap, which)

    def free(self) -> None:
        self._all(self.policy.free, None)

    def age(self) -> None:
        self._all(self.policy.age, None)

    def exit(self, tenant: CgroupRef) -> int:
        """How many pages have to be looked at for it."""
        looked_at = sum(self.policy.visits(page, tenant) for page in self.pages if tenant in page.tenants)
        self._all(lambda page: self.policy.exit(page, tenant) if tenant in page.tenants else page, None)
        return looked_at

    def bill(self) -> dict[CgroupRef, int]:
        """In pages."""
        bill: Counter[CgroupRef] = Counter()
        for page, pages in Counter(self.pages).items():
            if page.place is Place.RESIDENT:
                bill.update(self.policy.charge(page, pages * PAGE))
        return {tenant: part // PAGE for tenant, part in bill.items() if part}

    def zombie_pages(self, tenant: CgroupRef) -> int:
        """What holds on to a removed group, in memory or in swap."""
        return sum(page.orphan and page.owner == tenant for page in self.pages)

    def count(self, place: Place) -> int:
        return sum(page.place is place for page in self.pages)
