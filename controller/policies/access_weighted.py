"""The users of a file pay for it in proportion to how often they access it. Outside the article, from research on
caches.

Who uses a page once a day beside one who uses it all the time pays next to nothing. What it gives up: accesses
through mappings are not counted by anybody, each access that is must be, and who keeps something in memory
for others' accesses to pay for gains by accessing it less.
"""

from collections import Counter
from collections.abc import Mapping

from controller.policies.families import ByAccess, file_of
from controller.policies.page_state import Page
from controller.policies.policy import Demand, Parts
from controller.policies.split import apportion, by_path
from sharedfs.linux.cgroups import CgroupRef


class AccessWeighted(ByAccess):
    """A user whose accesses nobody counted, such as one that maps the file, weighs as much as one access."""

    name = "access_weighted"

    def bill(self, holdings: Mapping[Page, int], demand: Demand) -> Parts:
        bill: Counter[CgroupRef] = Counter()
        for page, held_bytes in holdings.items():
            counted = demand.accesses.get(file_of(page), {})
            bill.update(by_weight(held_bytes, {user: counted.get(user, 0) or 1 for user in page.payers}))
        return bill


def by_weight(total_bytes: int, weights: Mapping[CgroupRef, int]) -> Parts:
    """`apportion`, for cgroups; nothing for nobody."""
    if not weights:
        return {}
    named = {by_path(cgroup): cgroup for cgroup in weights}
    parts = apportion(total_bytes, {key: weights[cgroup] for key, cgroup in named.items()})
    return {named[key]: part for key, part in parts.items()}
