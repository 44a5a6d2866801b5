"""A removed group's pages are taken off its books and charged to whoever touches them next: Wilcox's, in two steps.

Until then they are parked on the parent. The right group is found, for it is the one that uses the page. What it gives
up: a simple access path, which has to look for parked pages and charge them; and pages that nobody touches stay on
the parent for good. The one who comes first pays for all others, as before.
"""

from controller.policies.families import EmptiedFirst
from controller.policies.page_state import Page, Place, parent_of
from sharedfs.linux.cgroups import CgroupRef


class RechargeDeferred(EmptiedFirst):
    name = "recharge_deferred"
    history = "who touched a page first after its owner had gone"

    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        return claimed(page, tenant) if page.parked else super().touch(page, tenant)

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        return parked(page, tenant)


def parked(page: Page, tenant: CgroupRef) -> Page:
    """Off the books of `tenant` and on its parent's, for whoever comes next."""
    return page._replace(owner=parent_of(tenant), parked=True)


def claimed(page: Page, tenant: CgroupRef) -> Page:
    return page if page.place is Place.ABSENT else page.charged_to(tenant)
