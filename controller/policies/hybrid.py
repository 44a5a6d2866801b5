"""A worker goes through a removed group's pages and does to each what suits it: the algorithm that Ahmed sketched.

Unmapped file pages are evicted; unmapped shared memory is parked for whoever touches it next; mapped pages are charged
to one who maps them; what is in swap goes to the parent. Of each of these it has the good and the bad, on the kind
of page where the bad is least. What it gives up: simplicity, and nothing is known of who shares: one pays for all.
"""

from controller.policies.evict import evicted
from controller.policies.families import EmptiedFirst, orphaned
from controller.policies.page_state import Kind, Page, Place
from controller.policies.recharge_deferred import claimed, parked
from controller.policies.recharge_mapped import chosen, mapped, unmapped
from controller.policies.reparent import to_parent
from sharedfs.linux.cgroups import CgroupRef


class Hybrid(EmptiedFirst):
    name = "hybrid"
    history = "what the worker did to a page when its owner had gone, and who came next"

    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        return claimed(page, tenant) if page.parked else super().touch(page, tenant)

    def map(self, page: Page, tenant: CgroupRef) -> Page:
        return mapped(self, page, tenant)

    def unmap(self, page: Page, tenant: CgroupRef) -> Page:
        return unmapped(page, tenant)

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is Place.SWAPPED:
            return to_parent(page, tenant)
        if page.mapped:
            return page.charged_to(chosen(page.mapped))
        if page.kind is Kind.CACHE:
            return evicted(page)
        return parked(page, tenant) if page.kind is Kind.SHMEM else orphaned(page)
