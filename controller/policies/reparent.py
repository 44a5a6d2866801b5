"""The removed group's charges go to its parent: the second of Mercier's non-fixes, and what Linux 7.1 came to do.

The zombie is gone, its memory is not: the parent, which never used it, is charged for it, and when that is removed the
next one up, to the root where nothing is limited. What it gives up: that the charge says anything about use.
"""

from controller.policies.families import EmptiedFirst
from controller.policies.page_state import Page, parent_of
from sharedfs.linux.cgroups import CgroupRef


class Reparent(EmptiedFirst):
    name = "reparent"

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        return to_parent(page, tenant)


def to_parent(page: Page, tenant: CgroupRef) -> Page:
    """In memory or in swap, wherever the page is."""
    return page if tenant.path == "/" else page._replace(owner=parent_of(tenant))
