"""A removed group's pages are charged to a group that has them mapped: the second of Ahmed's options.

A mapping names a user without doubt. But it says nothing of when: the group may be charged for what it used hours ago,
all at once and beyond its limit. Where several map a page one of them has to be chosen; here it is the first by path.
Pages that nobody maps stay on the zombie. What it gives up: that a limit means something to those who keep to it.
"""

from collections.abc import Collection

from controller.policies.families import EmptiedFirst, OneOwner, orphaned
from controller.policies.page_state import Page, Place
from controller.policies.policy import Held, Parts
from controller.policies.split import by_path
from sharedfs.linux.cgroups import CgroupRef


class RechargeMapped(EmptiedFirst):
    """On live books whom the kernel chose at the exit is not known: who would be chosen now is charged."""

    name = "recharge_mapped"

    def charge(self, held: Held, held_bytes: int) -> Parts:
        if held.owner is None and held.mapped:
            return {chosen(held.mapped): held_bytes}
        return super().charge(held, held_bytes)

    def map(self, page: Page, tenant: CgroupRef) -> Page:
        return mapped(self, page, tenant)

    def unmap(self, page: Page, tenant: CgroupRef) -> Page:
        return unmapped(page, tenant)

    def release(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is Place.RESIDENT and page.mapped:
            return page.charged_to(chosen(page.mapped))
        return orphaned(page)


def chosen(mapped: Collection[CgroupRef]) -> CgroupRef:
    return min(mapped, key=by_path)


def mapped(policy: OneOwner, page: Page, tenant: CgroupRef) -> Page:
    """The page as `policy` has it after a touch, and in one more page table."""
    return page if page.place is Place.ABSENT else policy.touch(page, tenant).mapped_by(tenant)


def unmapped(page: Page, tenant: CgroupRef) -> Page:
    """In one page table less. That it was used until now is of no interest to who looks at mappings only."""
    return page._replace(mapped=page.mapped - {tenant}) if tenant in page.mapped else page
