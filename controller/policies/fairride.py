"""Shared files are paid for by those who want them most, and others are made to wait: after FairRide (NSDI 2016).

Every tenant has a budget of memory and spends it on the files that it accesses most for each byte; a file's cost is
split evenly among those who spend on it. Who accesses a file on which others spend is blocked with probability
1/(n + 1), n being how many pay: just so often that it gains nothing by leaving the bill to them. Being blocked is a
delay as long as a read from disk. What it gives up: some of the sharing, on purpose, and a simple bill.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from controller.policies.families import ByAccess, file_of
from controller.policies.page_state import Page
from controller.policies.policy import Demand, Parts
from controller.policies.split import by_path, split
from sharedfs.linux.cgroups import CgroupRef

Payers = Mapping[int, frozenset[CgroupRef]]


class FairRide(ByAccess):
    name = "fairride"

    def bill(self, holdings: Mapping[Page, int], demand: Demand) -> Parts:
        return self.bill_and_delays(holdings, demand)[0]

    def bill_and_delays(self, holdings: Mapping[Page, int], demand: Demand) -> tuple[Parts, Mapping[CgroupRef, float]]:
        """The bill, and how many of the latest accesses of each tenant are expected to be blocked.

        Each page is split among those of its payers who spend on its file. With none of them it is nobody's.
        """
        paying = self.payers(holdings, demand)
        bill: Counter[CgroupRef] = Counter()
        for page, held_bytes in holdings.items():
            for tenant, part in split(held_bytes, page.payers & paying.get(file_of(page), frozenset())).items():
                bill[tenant] += part
        delayed: defaultdict[CgroupRef, float] = defaultdict(float)
        for file, by_tenant in demand.latest.items():
            payers = paying.get(file, frozenset())
            for tenant, count in by_tenant.items():
                if payers and tenant not in payers:
                    delayed[tenant] += count / (len(payers) + 1)
        return bill, delayed

    def payers(self, holdings: Mapping[Page, int], demand: Demand) -> Payers:
        """Who spends on which file. A tenant without a budget spends on everything that it uses."""
        wanted: defaultdict[CgroupRef, Counter[int]] = defaultdict(Counter)
        users: defaultdict[int, set[CgroupRef]] = defaultdict(set)
        for page, held_bytes in holdings.items():
            for user in page.payers:
                wanted[user][file_of(page)] += held_bytes
                users[file_of(page)].add(user)
        paying: defaultdict[int, set[CgroupRef]] = defaultdict(set)
        for tenant in sorted(wanted, key=by_path):
            left = demand.budgets.get(tenant)
            worth = {
                file: demand.accesses.get(file, {}).get(tenant, 0) / held_bytes
                for file, held_bytes in wanted[tenant].items()
            }
            for file in sorted(worth, key=lambda file: (-worth[file], file)):
                # As if all its users were to pay: what each of them can be sure of.
                cost_bytes = -(-wanted[tenant][file] // len(users[file]))
                if left is None or cost_bytes <= left:
                    paying[file].add(tenant)
                    left = None if left is None else left - cost_bytes
        return {file: frozenset(paying[file]) for file in users}
