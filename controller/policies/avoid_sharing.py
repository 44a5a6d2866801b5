"""Nobody shares: each tenant has a copy of what it uses. Hocko's question whether sharing could be just avoided.

Every byte has one user, who pays for it and takes it along. What it gives up is memory: as many copies as there are
users, and the answer in the room was that users share in order to save memory. What a bill adds up to is more than
what is resident, and the difference is the price.
"""

from controller.policies.families import ByUse
from controller.policies.page_state import Page, Place
from controller.policies.policy import Held, Parts
from sharedfs.linux.cgroups import CgroupRef


class AvoidSharing(ByUse):
    """A copy is there until its owner exits, whether it is looked at or not: nothing ages."""

    name = "avoid_sharing"
    conserves = False
    ages = False

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return dict.fromkeys(held.payers, held_bytes)

    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        """When everybody who had a copy is gone, it has to be made again."""
        there = page._replace(place=Place.RESIDENT) if page.place is Place.EVICTED else page
        return super().touch(there, tenant)

    def map(self, page: Page, tenant: CgroupRef) -> Page:
        return self.touch(page, tenant).mapped_by(tenant) if page.place is not Place.ABSENT else page

    def exit(self, page: Page, tenant: CgroupRef) -> Page:
        rest = page.without(tenant)
        return rest if rest.payers or page.place is not Place.RESIDENT else rest._replace(place=Place.EVICTED)

    def age(self, page: Page) -> Page:
        return page
