"""Before a cgroup is removed its memory is reclaimed by force (`memory.reclaim`): the first of Mercier's non-fixes.

Page cache goes, and is read again by who needs it. Shared memory cannot be dropped; what can be done is to swap it
out, which makes things worse: others use it and have to bring it back, and the removed group is held by its swap
entries until they do. What it gives up: the time of everybody who shares. Pinned pages stay in any case.
"""

from controller.policies.evict import evicted
from controller.policies.families import EmptiedFirst, orphaned
from controller.policies.page_state import Kind, Page, Place
from sharedfs.linux.cgroups import CgroupRef


class ManualReclaim(EmptiedFirst):
    name = "manual_reclaim"
    history = "what was swapped out when the owner went, and who brought it back"

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is Place.RESIDENT and page.kind is Kind.CACHE:
            return evicted(page)
        if page.place is Place.RESIDENT and page.kind is Kind.SHMEM:
            return orphaned(page)._replace(place=Place.SWAPPED)
        return orphaned(page)
