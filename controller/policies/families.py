"""The families that policies belong to: one cgroup is charged for a page, or its users are known and share.

What every policy of a family does alike is here, and nothing that tells one from another.
"""

from abc import abstractmethod
from collections.abc import Mapping

from controller.policies.page_state import Page, Place
from controller.policies.policy import Demand, Held, NeedsHistory, Parts, Policy
from sharedfs.api.types import NOBODY_PATH
from sharedfs.linux.cgroups import CgroupRef


class OneOwner(Policy):
    """As the kernel has it: a page is charged to the cgroup that first touched it, and to no other.

    What a family member adds is what happens when that cgroup is removed: `release`.
    """

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return {} if held.owner is None else {held.owner: held_bytes}

    def allocate(self, page: Page, tenant: CgroupRef) -> Page:
        return page.charged_to(tenant) if page.place is Place.ABSENT else self.touch(page, tenant)

    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        """From swap a page comes back on the books that it left, unless their cgroup was removed meanwhile."""
        if page.place is Place.EVICTED:
            return page.charged_to(tenant)
        if page.place is Place.SWAPPED:
            return page.charged_to(tenant if page.orphan or page.owner is None else page.owner)
        return page

    def exit(self, page: Page, tenant: CgroupRef) -> Page:
        rest = page.without(tenant)
        return self.release(rest, tenant) if page.owner == tenant else rest

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        """`tenant`, which is charged for the page, was removed. Here: it becomes a zombie that holds on to the page."""
        return orphaned(page)


class EmptiedFirst(OneOwner):
    """Before a cgroup is removed each page that is charged to it is looked at, and something is done about it."""

    def charge(self, held: Held, held_bytes: int) -> Parts:
        if held.owner is None and self.history:
            raise NeedsHistory(self.history)
        return super().charge(held, held_bytes)

    def visits(self, page: Page, tenant: CgroupRef) -> bool:
        return page.owner == tenant


class ByUse(Policy):
    """Who made and who uses a page is known, as the ledger knows it, and no charge moves when one of them exits."""

    ages = True

    def allocate(self, page: Page, tenant: CgroupRef) -> Page:
        if tenant.path == NOBODY_PATH:
            return page._replace(place=Place.RESIDENT)
        if page.place in (Place.ABSENT, Place.EVICTED):
            page = page._replace(place=Place.RESIDENT, maker=tenant)
        return back(page).touched_by(tenant)

    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        return back(page).touched_by(tenant) if page.place is not Place.ABSENT else page

    def map(self, page: Page, tenant: CgroupRef) -> Page:
        return back(page).mapped_by(tenant) if page.place is not Place.ABSENT else page

    def unmap(self, page: Page, tenant: CgroupRef) -> Page:
        return page.unmapped_by(tenant)

    def exit(self, page: Page, tenant: CgroupRef) -> Page:
        return page.without(tenant)

    def age(self, page: Page) -> Page:
        return page.aged()


class ByAccess(ByUse):
    """How often each user accesses a file is known as well, and changes the bill with no page changing."""

    rules = "use of files"
    history = "how often each tenant accessed a file"

    def charge(self, held: Held, held_bytes: int) -> Parts:
        raise NeedsHistory(self.history)

    @abstractmethod
    def bill(self, holdings: Mapping[Page, int], demand: Demand) -> Parts:
        """The bill of everything that is resident."""


def file_of(page: Page) -> int:
    return -1 if page.file is None else page.file


def orphaned(page: Page) -> Page:
    return page if page.orphan else page._replace(orphan=True)


def back(page: Page) -> Page:
    """In memory again, if it was in swap."""
    return page._replace(place=Place.RESIDENT) if page.place is Place.SWAPPED else page
