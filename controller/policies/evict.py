"""A removed group's page cache is thrown out of memory: the first of Ahmed's options.

Who still needs it reads it again and is charged, so the right one pays. What it gives up: the speed of pages that are
in use. It cannot be done to pinned pages, nor to shared memory, which has no other place to be: these stay on a
zombie.
"""

from controller.policies.families import EmptiedFirst, orphaned
from controller.policies.page_state import Kind, Page, Place
from sharedfs.linux.cgroups import CgroupRef


class Evict(EmptiedFirst):
    name = "evict"
    history = "who would have read a page again that was thrown out"

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is Place.RESIDENT and page.kind is Kind.CACHE:
            return evicted(page)
        return orphaned(page)


def evicted(page: Page) -> Page:
    """Out of memory, and on nobody's books."""
    return page._replace(place=Place.EVICTED, owner=None, orphan=False, parked=False)
