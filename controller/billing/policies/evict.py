"""A removed group's page cache is thrown out of memory: the first of Ahmed's options.

Who still needs it reads it again and is charged, so the right one pays. What it gives up: the speed of pages that are
in use. It cannot be done to pinned pages, nor to shared memory, which has no other place to be: these stay on a
zombie.
"""

from controller.billing.page import Kind, Page, Place
from controller.billing.policies import Held, NeedsHistory, Parts
from controller.billing.policies.kinds import OneOwner, orphaned
from sharedfs.kernel.cgroups import CgroupRef


class Evict(OneOwner):
    name = "evict"
    needs_history = True

    def charge(self, held: Held, held_bytes: int) -> Parts:
        if held.owner is None:
            raise NeedsHistory("who would have read a page again that was thrown out")
        return super().charge(held, held_bytes)

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is Place.RESIDENT and page.kind is Kind.CACHE:
            return evicted(page)
        return orphaned(page)

    def visits(self, page: Page, tenant: CgroupRef) -> bool:
        return page.owner == tenant


def evicted(page: Page) -> Page:
    """Out of memory, and on nobody's books."""
    return page._replace(place=Place.EVICTED, owner=None, orphan=False, parked=False)
