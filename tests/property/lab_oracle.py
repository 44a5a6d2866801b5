"""The replay's slow, obvious twin: a record a page, an event at a time, bills from scratch.

There are no groups, no states and no arrays. It says what a replay means; where the two differ, one of them is wrong.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.lab.events import PAGE_BYTES, Event
from controller.lab.replay import Clocks
from controller.policies.fairride import FairRide
from controller.policies.families import ByAccess
from controller.policies.page_state import Kind, Page, Place, group_at
from controller.policies.policy import Demand, Policy
from sharedfs.linux.cgroups import CgroupRef


@dataclass(frozen=True)
class Row:
    time_us: int
    event: Event
    tenant: int = 0
    file: int = 0
    first_page: int = 0
    last_page: int = 0
    value: int = 0
    name: str | None = None


@dataclass
class Books:
    """One policy's pages."""

    policy: Policy
    kinds: Sequence[Kind]
    pages: dict[tuple[int, int], Page] = field(default_factory=dict)
    moved_at_exit: int = 0
    moved_on_access: int = 0
    refaulted: int = 0
    swapped_in: int = 0

    def play(self, row: Row, tenant: CgroupRef | None) -> None:
        for number in range(row.first_page, row.last_page + 1):
            known = row.file if isinstance(self.policy, ByAccess) else None
            before = self.pages.get((row.file, number), Page(self.kinds[row.file], file=known))
            after = self._after(row.event, before, tenant)
            self.pages[row.file, number] = after
            if Place.ABSENT in (before.place, after.place):
                continue
            self.refaulted += before.place is Place.EVICTED and after.place is Place.RESIDENT
            self.swapped_in += before.place is Place.SWAPPED and after.place is Place.RESIDENT
            self.moved_on_access += before.place is after.place and before.owner != after.owner

    def _after(self, event: Event, page: Page, tenant: CgroupRef | None) -> Page:
        if event is Event.FREE:
            return self.policy.free(page)
        if event is Event.SWAP:
            return self.policy.swap(page)
        assert tenant is not None
        act = {
            Event.ALLOCATE: self.policy.allocate,
            Event.TOUCH: self.policy.touch,
            Event.MAP: self.policy.map,
            Event.UNMAP: self.policy.unmap,
        }
        return act[event](page, tenant)

    def exit(self, tenant: CgroupRef) -> int:
        """How many pages had to be looked at."""
        visited = 0
        for key, page in self.pages.items():
            if tenant in page.tenants:
                visited += self.policy.visits(page, tenant)
                after = self.policy.exit(page, tenant)
                self.moved_at_exit += page.place is after.place and page.owner != after.owner
                self.pages[key] = after
        return visited

    def age(self) -> None:
        if self.policy.ages:
            self.pages = {key: self.policy.age(page) for key, page in self.pages.items()}

    def resident(self) -> dict[Page, int]:
        sorts = Counter(page for page in self.pages.values() if page.place is Place.RESIDENT)
        return {page: pages * PAGE_BYTES for page, pages in sorts.items()}

    def bill(self, demand: Demand) -> dict[CgroupRef, int]:
        if isinstance(self.policy, ByAccess):
            return {tenant: part for tenant, part in self.policy.bill(self.resident(), demand).items() if part}
        bill: Counter[CgroupRef] = Counter()
        for page, held_bytes in self.resident().items():
            bill.update(self.policy.charge(page, held_bytes))
        return {tenant: part for tenant, part in bill.items() if part}


class TrueUse:
    """Both yardsticks, page by page."""

    def __init__(self, kinds: Sequence[Kind], window_us: int) -> None:
        self.kinds = kinds
        self.window_us = window_us
        self.there: set[tuple[int, int]] = set()
        self.swapped: set[tuple[int, int]] = set()
        self.touched: defaultdict[tuple[int, int], dict[CgroupRef, int]] = defaultdict(dict)
        self.mapped: defaultdict[tuple[int, int], set[CgroupRef]] = defaultdict(set)
        self.maker: dict[tuple[int, int], CgroupRef] = {}
        self.users: dict[tuple[int, int], set[CgroupRef]] = {}
        self.weights: dict[tuple[int, CgroupRef], int] = {}
        self.levels: tuple[dict[CgroupRef, float], dict[CgroupRef, float]] = {}, {}

    def play(self, row: Row, tenant: CgroupRef | None) -> None:
        for number in range(row.first_page, row.last_page + 1):
            page = row.file, number
            if row.event is Event.FREE:
                self.there.discard(page)
                self.swapped.discard(page)
                self.touched[page].clear()
                self.mapped[page].clear()
                self.maker.pop(page, None)
                continue
            if row.event is Event.ALLOCATE and page not in self.there:
                assert tenant is not None
                self.there.add(page)
                self.maker[page] = tenant
            if page not in self.there:
                continue
            if row.event is Event.SWAP:
                if self.kinds[row.file] is Kind.SHMEM:
                    self.swapped.add(page)
                continue
            assert tenant is not None
            if row.event is Event.UNMAP:
                if tenant in self.mapped[page]:
                    self.mapped[page].remove(tenant)
                    self.touched[page][tenant] = row.time_us
                continue
            self.swapped.discard(page)
            if row.event is Event.MAP:
                self.mapped[page].add(tenant)
            else:
                self.touched[page][tenant] = row.time_us

    def tick(self, now_us: int, weights: Counter[tuple[int, CgroupRef]]) -> None:
        self.weights = dict(weights)
        self.users = {page: self._users(page, now_us) for page in self.there - self.swapped}
        self._measure()

    def _users(self, page: tuple[int, int], now_us: int) -> set[CgroupRef]:
        touched, mapped = self.touched[page], self.mapped[page]
        lately = {tenant for tenant, at_us in touched.items() if at_us >= now_us - self.window_us}
        users = lately | mapped | ({self.maker[page]} if page in self.maker else set())
        return {user for user in users if user.path != "/(nobody)"}

    def exit(self, tenant: CgroupRef) -> None:
        self.maker = {page: maker for page, maker in self.maker.items() if maker != tenant}
        for users in (*self.touched.values(), *self.mapped.values(), *self.users.values()):
            if isinstance(users, dict):
                users.pop(tenant, None)
            else:
                users.discard(tenant)
        self._measure()

    def _measure(self) -> None:
        even: defaultdict[CgroupRef, float] = defaultdict(float)
        by_access: defaultdict[CgroupRef, float] = defaultdict(float)
        for (file, _), users in self.users.items():
            weights = {user: max(1, self.weights.get((file, user), 0)) for user in users}
            for user, weight in weights.items():
                even[user] += PAGE_BYTES / len(users)
                by_access[user] += PAGE_BYTES * weight / sum(weights.values())
        self.levels = even, by_access


class SlowReplay:
    """All of it for one policy."""

    def __init__(self, rows: Sequence[Row], policy: Policy, kinds: Sequence[Kind], clocks: Clocks) -> None:
        self.books = Books(policy, kinds)
        self.true = TrueUse(kinds, round(clocks.window_seconds * 1e6))
        self.level: dict[CgroupRef, int] = {}
        self.used: defaultdict[CgroupRef, float] = defaultdict(float)
        self.paid: Counter[CgroupRef] = Counter()
        self.error: defaultdict[CgroupRef, float] = defaultdict(float)
        self.access_error: defaultdict[CgroupRef, float] = defaultdict(float)
        self.delayed: defaultdict[CgroupRef, float] = defaultdict(float)
        self.tenants: dict[int, CgroupRef] = {}
        self.limits: dict[CgroupRef, int] = {}
        self.alive: set[CgroupRef] = set()
        self.victims: set[CgroupRef] = set()
        self.visited: list[int] = []
        self.totals: list[tuple[int, int]] = []
        self.weights: Counter[tuple[int, CgroupRef]] = Counter()
        self.lately: Counter[tuple[int, CgroupRef]] = Counter()
        self.billed_us = rows[0].time_us
        self._run(rows, clocks)

    def _run(self, rows: Sequence[Row], clocks: Clocks) -> None:
        start_us, end_us = rows[0].time_us, rows[-1].time_us
        periods = (
            max(1, (end_us - start_us) // clocks.bills),
            max(1, round(clocks.idle_seconds / 2 * 1e6)),
        )
        due = sorted(
            (at_us, order)
            for order, period_us in enumerate(periods)
            for at_us in range(start_us + period_us, end_us + 1, period_us)
        )
        for row in rows:
            while due and due[0][0] <= row.time_us:
                self._ring(*due.pop(0))
            self._take(row)
        self._tick(end_us)

    def _ring(self, at_us: int, order: int) -> None:
        if order == 0:
            self._tick(at_us)
        else:
            self.books.age()
            for key in self.weights:
                self.weights[key] //= 2

    def _take(self, row: Row) -> None:
        if row.event is Event.START:
            assert row.name is not None
            tenant = self.tenants[row.tenant] = CgroupRef(row.name, row.tenant + 1)
            self.alive.add(tenant)
            if row.value >= 0:
                self.limits[tenant] = row.value
        elif row.event is Event.EXIT:
            self._exit(self.tenants[row.tenant], row.time_us)
        elif row.event is not Event.FILE:
            tenant_or_none = self.tenants.get(row.tenant)
            self.books.play(row, tenant_or_none)
            self.true.play(row, tenant_or_none)
            if row.event in (Event.ALLOCATE, Event.TOUCH):
                self.lately[row.file, self.tenants[row.tenant]] += max(1, row.value)

    def _exit(self, tenant: CgroupRef, now_us: int) -> None:
        self._bill(now_us, None)
        self.true.tick(now_us, self.weights)
        over = self._over()
        self.alive.discard(tenant)
        self.true.exit(tenant)
        self.visited.append(self.books.exit(tenant))
        self.books.exit(group_at(tenant.path))
        self._bill(now_us, None)
        self.victims |= self._over() - over
        for counts in (self.weights, self.lately):
            for key in [key for key in counts if key[1] == tenant]:
                del counts[key]

    def _over(self) -> set[CgroupRef]:
        return {
            tenant
            for tenant, limit in self.limits.items()
            if tenant in self.alive and self.level.get(tenant, 0) > limit
        }

    def _tick(self, now_us: int) -> None:
        self.weights.update(self.lately)
        limits = {tenant: limit for tenant, limit in self.limits.items() if tenant in self.alive}
        demand = Demand(_nested(self.weights), _nested(self.lately), limits)
        self.lately.clear()
        self._bill(now_us, demand)
        self.true.tick(now_us, self.weights)
        if isinstance(self.books.policy, FairRide):
            for tenant, count in self.books.policy.bill_and_delays(self.books.resident(), demand)[1].items():
                self.delayed[tenant] += count
        self.totals.append((sum(self.books.resident().values()), sum(self.level.values())))

    def _bill(self, now_us: int, demand: Demand | None) -> None:
        seconds = (now_us - self.billed_us) / 1e6
        self.billed_us = now_us
        for tenant, part in self.level.items():
            self.paid[tenant] += part * seconds  # type: ignore[assignment]
        even, by_access = self.true.levels
        for tenant in self.alive:
            self.used[tenant] += even.get(tenant, 0) * seconds
            self.error[tenant] += abs(self.level.get(tenant, 0) - even.get(tenant, 0)) * seconds
            self.access_error[tenant] += abs(self.level.get(tenant, 0) - by_access.get(tenant, 0)) * seconds
        if demand is not None or not isinstance(self.books.policy, ByAccess):
            self.level = self.books.bill(demand or Demand())


def _nested(counts: Counter[tuple[int, CgroupRef]]) -> dict[int, dict[CgroupRef, int]]:
    nested: dict[int, dict[CgroupRef, int]] = {}
    for (file, tenant), count in counts.items():
        if count:
            nested.setdefault(file, {})[tenant] = count
    return nested
