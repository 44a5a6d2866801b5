"""The ledger's slow, obvious twin: one record a page, no classes, no ids, no aliases, no memos.

It says what the ledger means; where the two differ, one of them is wrong.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sharedfs.ledger.page_ranges import merged
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId


@dataclass
class Page:
    owner: TenantId
    foreign: bool
    recent: set[TenantId] = field(default_factory=set)
    older: set[TenantId] = field(default_factory=set)
    mapped: set[TenantId] = field(default_factory=set)
    heir: TenantId = NOBODY

    def touch(self, tenant: TenantId) -> None:
        if tenant != NOBODY:
            self.older.discard(tenant)
            self.recent.add(tenant)

    def payers(self) -> set[TenantId]:
        """I10: who allocated the page, and who touched it in this generation or the one before, or maps it.

        Where there is none of them, who inherits from the owner.
        """
        return ((self.recent | self.older | self.mapped | {self.owner}) - {NOBODY}) or ({self.heir} - {NOBODY})

    def give_to(self, tenant: TenantId) -> None:
        self.owner, self.heir = tenant, NOBODY

    def sharing_class(self) -> SharingClass:
        sets = frozenset(self.recent), frozenset(self.older), frozenset(self.mapped)
        return SharingClass(self.owner, *sets, foreign=self.foreign, heir=self.heir)


class Oracle:
    """Every method means what the ledger's of the same name means. `pages` is keyed by (file, page)."""

    def __init__(self, page_bytes: int = 4096) -> None:
        self.page_bytes = page_bytes
        self.pages: dict[tuple[int, int], Page] = {}
        self.unit_pages: dict[int, int] = {}
        self.births: Counter[int] = Counter()
        self.told: dict[tuple[int, TenantId], tuple[list[tuple[int, int]], int]] = {}
        """What `set_mapped` was told last, and the births in the file then: told again, it has no effect. That is to be
        seen only when users were reduced in between."""

    def _unit_of(self, file: int, page: int) -> range:
        """The pages that are accounted for together with `page`."""
        unit = self.unit_pages.get(file, 1)
        return range(page - page % unit, page - page % unit + unit)

    def _resident(self, file: int, first_page: int, last_page: int) -> list[int]:
        return sorted(page for known, page in self.pages if known == file and first_page <= page <= last_page)

    def charge(self, file: int, first_page: int, last_page: int, tenant: TenantId, *, foreign: bool = False) -> int:
        new = 0
        for page in range(first_page, last_page + 1):
            if (file, page) not in self.pages:
                self.pages[file, page] = Page(tenant, foreign)
                new += 1
                self.births[file] += 1
            self.pages[file, page].touch(tenant)
        if self.unit_pages.get(file, 1) > 1:
            for page in range(first_page, last_page + 1):
                self._unite(file, page)
        return new

    def touch(self, file: int, first_page: int, last_page: int, tenant: TenantId) -> None:
        first_page, last_page = self._unit_of(file, first_page)[0], self._unit_of(file, last_page)[-1]
        for page in self._resident(file, first_page, last_page):
            self.pages[file, page].touch(tenant)

    def _unite(self, file: int, page: int) -> None:
        unit = [self.pages[file, other] for other in self._unit_of(file, page) if (file, other) in self.pages]
        recent, older, mapped = (
            set().union(*(getattr(other, users) for other in unit)) for users in ("recent", "older", "mapped")
        )
        for other in unit:
            other.recent, other.older, other.mapped = set(recent), older - recent, set(mapped)

    def coarsen(self, file: int, unit_pages: int) -> None:
        self.unit_pages[file] = unit_pages
        for page in self._resident(file, 0, 1 << 62):
            self._unite(file, page)

    def reduce(self, owner: TenantId) -> None:
        """One payer is left for each page of `owner`: itself, or where it is gone the first of the users."""
        for page in self.pages.values():
            users = page.recent | page.older | page.mapped
            if page.owner != owner or not users:
                continue
            payer = owner if owner != NOBODY else min(users)
            if payer in page.mapped:
                page.recent, page.older = set(), set()
            for names in (page.recent, page.older, page.mapped):
                names &= {payer}

    def uncharge(self, file: int, first_page: int, last_page: int | None = None) -> int:
        gone = self._resident(file, first_page, 1 << 62 if last_page is None else last_page)
        for page in gone:
            del self.pages[file, page]
        if not self._resident(file, 0, 1 << 62):
            self.told = {key: told for key, told in self.told.items() if key[0] != file}
        return len(gone)

    def drop(self, file: int) -> int:
        return self.uncharge(file, 0)

    def recharge(self, file: int, first_page: int, last_page: int, to: TenantId | None = None) -> None:
        for page in self._resident(file, first_page, last_page):
            if to is None:
                self.pages[file, page].foreign = False
            elif self.pages[file, page].foreign:
                self.pages[file, page].give_to(to)

    def add_mapped(self, file: int, tenant: TenantId, ranges: Sequence[tuple[int, int]]) -> None:
        self.told.pop((file, tenant), None)
        for (known, number), page in self.pages.items():
            unit = self._unit_of(file, number)
            if (
                known == file
                and tenant != NOBODY
                and any(first <= unit[-1] and unit[0] <= last for first, last in ranges)
            ):
                page.mapped.add(tenant)

    def set_mapped(self, file: int, tenant: TenantId, ranges: Sequence[tuple[int, int]]) -> None:
        told = (merged(ranges), self.births[file])
        if tenant == NOBODY or file not in self.files() or (ranges and self.told.get((file, tenant)) == told):
            return
        self.told[file, tenant] = told
        for (known, number), page in self.pages.items():
            if known != file:
                continue
            unit = self._unit_of(file, number)
            if any(first <= unit[-1] and unit[0] <= last for first, last in ranges):
                page.mapped.add(tenant)
            elif tenant in page.mapped:
                page.mapped.remove(tenant)
                page.touch(tenant)

    def hand_over(self, file: int, tenant: TenantId) -> None:
        for (known, _), page in self.pages.items():
            if known == file and not page.foreign:
                page.give_to(tenant)

    def exit(self, tenant: TenantId, heir: TenantId = NOBODY) -> None:
        self.told = {key: told for key, told in self.told.items() if key[1] != tenant}
        for page in self.pages.values():
            if page.owner == tenant:
                page.owner, page.heir = NOBODY, heir
            elif page.heir == tenant:
                page.heir = heir
            for users in (page.recent, page.older, page.mapped):
                users.discard(tenant)

    def disinherit(self) -> None:
        """It is handed over to a version that knows no heirs."""
        for page in self.pages.values():
            page.heir = NOBODY

    def age(self) -> None:
        for page in self.pages.values():
            page.older, page.recent = page.recent, set()

    def state(self, file: int | None = None) -> dict[tuple[int, int], SharingClass]:
        return {key: page.sharing_class() for key, page in self.pages.items() if file in (None, key[0])}

    def _bytes(self, classes: Iterable[SharingClass]) -> dict[SharingClass, int]:
        return {held: pages * self.page_bytes for held, pages in Counter(classes).items()}

    def holdings(self) -> dict[SharingClass, int]:
        return self._bytes(self.state().values())

    def file_holdings(self, file: int) -> dict[SharingClass, int]:
        return self._bytes(self.state(file).values())

    def files(self) -> list[int]:
        return sorted({file for file, _ in self.pages})

    def files_of(self, tenant: TenantId) -> list[int]:
        return sorted({file for (file, _), page in self.pages.items() if tenant in page.payers()})

    def absent_pages(self, file: int, ranges: Iterable[tuple[int, int]]) -> set[int]:
        wanted = {page for first, last in ranges for page in range(first, last + 1)}
        return {page for page in wanted if (file, page) not in self.pages}
