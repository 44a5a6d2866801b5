"""One cgroup, named for each mount, pays for everything on it: tmpfs's `memcg=`, proposed in 2021 and not merged.

It is outside the article. The charge is where somebody put it and moves with nobody's first touch. What it gives up:
all others ride free, nobody's limit holds back what they write, and the one that pays can be pushed over its own.
When it is removed, it is the zombie.
"""

from controller.policies.families import OneOwner
from controller.policies.page_state import Page, Place
from controller.policies.policy import Held, Parts
from sharedfs.linux.cgroups import CgroupRef


class Designated(OneOwner):
    """`payer` is the cgroup that was named; None: nobody was, and nobody pays."""

    name = "designated"

    def __init__(self, payer: CgroupRef | None = None) -> None:
        self.payer = payer

    def charge(self, held: Held, held_bytes: int) -> Parts:
        return {} if self.payer is None else {self.payer: held_bytes}

    def allocate(self, page: Page, tenant: CgroupRef) -> Page:
        if page.place is not Place.ABSENT:
            return self.touch(page, tenant)
        return page._replace(place=Place.RESIDENT, owner=self.payer)
