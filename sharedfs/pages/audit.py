"""Audit: what the books say of each page, beside what the pool's tmpfs, the kernel's charges and page tables say.

It changes nothing. Pages come and go while it looks, and page tables are looked at each half second only: so a
difference is told when looks a second later find it, too.
"""

import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import eq

from sharedfs.accounting.books import Books
from sharedfs.common.lane import PAUSE_SECONDS
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_ranges import LAST_PAGE, NO_RUNS, PageRange, as_runs, common, without
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import cachestat
from sharedfs.pages.kernel_charges import KernelCharges
from sharedfs.pages.moved_charges import MovedCharges
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.storage.inodes import Inodes

ABSENT, THERE, POOL, NOBODYS = "not there", "there", "the pool", "a cgroup that is gone"

_MORE_LOOKS, _PAUSE_SECONDS = 3, 1.2
_REPAIR_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Pages `first`..`last` of a file: what the `books` say of them, and what the `kernel` says. Tenants by path."""

    inode: int
    first: int
    last: int
    books: str
    kernel: str


class Audit:
    """Of one pool. Safe from any thread."""

    def __init__(
        self, inodes: Inodes, books: Books, charges: KernelCharges, moved: MovedCharges, looks: ProcessLooks
    ) -> None:
        self._inodes = inodes
        self._books = books
        self._charges = charges
        self._moved = moved
        self._looks = looks
        self._can_ask = cachestat.can_be_asked()

    def differences(self, inodes: Sequence[int], *, mappings: bool) -> list[Difference]:
        """Of these files, and with `mappings` of what is mapped of any, that stay. Takes seconds where some do."""
        found = self._look(inodes, mappings=mappings)
        for _ in range(_MORE_LOOKS):
            if found:
                time.sleep(_PAUSE_SECONDS)
                again = self._look(list(dict.fromkeys(one.inode for one in found)), mappings=mappings)
                found = in_both(found, again)
        return found

    def repair(self, found: Sequence[Difference], *, mappings: bool) -> list[Difference]:
        """Have the books follow what the kernel says of these files; what differs after ten seconds at most.

        Pages that the books do not have, and charges that are to move, are dealt with in the background meanwhile.
        """
        inodes = list(dict.fromkeys(one.inode for one in found))
        left, until = list(found), time.monotonic() + _REPAIR_SECONDS
        while left and time.monotonic() < until:
            for inode in inodes:
                self._moved.compare(inode)
            time.sleep(_PAUSE_SECONDS)
            left = in_both(left, self._look(inodes, mappings=mappings))
        return left

    def _look(self, inodes: Sequence[int], *, mappings: bool) -> list[Difference]:
        found = [one for inode in inodes for one in self.of_file(inode)]
        return [*found, *self.of_mappings()] if mappings else found

    # -- the tmpfs, and the kernel's charges -------------------------------------------------------------------------

    def of_file(self, inode: int) -> list[Difference]:
        """Where the books differ from the file's pages and from whom the kernel charges for these. O(pages).

        Of a file that is gone, and where the kernel cannot be asked, nothing. Nor of what is no regular file: opening a
        FIFO waits until somebody writes to it.
        """
        found: list[Difference] = []
        with suppress(OSError):
            with self._inodes.lock:
                node = self._inodes.find(inode)
                if not stat.S_ISREG(self._inodes.stat(node).st_mode):
                    return []
            with self._inodes.opened(node) as fd:
                for part in self._parts(inode, fd) if self._can_ask else ():
                    found += self._of_part(inode, fd, part)
        return joined(found)

    def _parts(self, inode: int, fd: int) -> Iterator[PageRange]:
        chunks = set(self._books.questions.chunks_of(inode, 0, LAST_PAGE))
        for first, last in cachestat.resident_runs(fd, 0, LAST_PAGE):
            chunks.update(range(first // PAGES_PER_CHUNK, last // PAGES_PER_CHUNK + 1))
        for chunk in sorted(chunks):
            yield chunk * PAGES_PER_CHUNK, (chunk + 1) * PAGES_PER_CHUNK - 1
            time.sleep(PAUSE_SECONDS)

    def _of_part(self, inode: int, fd: int, part: PageRange) -> Iterator[Difference]:
        there, charged = cachestat.resident_runs(fd, *part), self._charges.of(fd, [part])
        absent = self._books.questions.absent(inode, [part])
        yield from (Difference(inode, *run, ABSENT, THERE) for run in common(absent, there))
        by_kernel = {POOL: charged.of_pool()} | {self._name(one): charged.pages_of(one) for one in charged.tenants}
        for held in self._books.questions.classes_in(inode, part):
            runs = self._books.questions.runs_where(inode, partial(eq, held), *part)
            payer = self._name(held.owner) if held.foreign else POOL
            yield from (Difference(inode, *run, _charges(payer), ABSENT) for run in _minus(runs, there))
            for charges, pages in by_kernel.items():
                if charges != payer:
                    yield from (
                        Difference(inode, *run, _charges(payer), _charges(charges)) for run in common(pages, runs)
                    )

    def _name(self, tenant: TenantId) -> str:
        cgroup = self._books.tenants.cgroup_of(tenant)
        return NOBODYS if cgroup is None else cgroup.path

    # -- page tables -------------------------------------------------------------------------------------------------

    def of_mappings(self) -> list[Difference]:
        """Pages that a tenant's processes have in their page tables and that it does not pay for. O(what is mapped).

        Of processes that can be looked at now. Pages that the books do not have are `of_file`'s.
        """
        found: list[Difference] = []
        sights, _ = self._looks.all(pages=True)
        for sight, tenant in sights if self._can_ask else ():
            for inode, pages in sight.present.items() if tenant != NOBODY else ():
                paid = self._books.questions.runs_where(inode, partial(_pays, tenant))
                booked = self._books.questions.runs_where(inode, lambda _: True)
                mapped = [(first, last) for first, last in pages.tolist()]
                found += (
                    Difference(inode, *run, f"{self._name(tenant)} does not pay", f"{self._name(tenant)} maps them")
                    for run in common(_minus(mapped, paid), booked)
                )
        return joined(found)


def joined(found: Sequence[Difference]) -> list[Difference]:
    """The same differences, those together that are next to each other and alike."""
    result: list[Difference] = []
    for _, alike in groupby(sorted(set(found), key=_order), key=lambda one: (one.inode, one.books, one.kernel)):
        for one in alike:
            if result and _order(result[-1])[:3] == _order(one)[:3] and result[-1].last + 1 >= one.first:
                last = max(result[-1].last, one.last)
                result[-1] = Difference(one.inode, result[-1].first, last, one.books, one.kernel)
            else:
                result.append(one)
    return sorted(result, key=lambda one: (one.inode, one.first))


def in_both(some: Sequence[Difference], others: Sequence[Difference]) -> list[Difference]:
    """The pages of which both say the same."""
    known: dict[tuple[int, str, str], list[PageRange]] = {}
    for one in others:
        known.setdefault((one.inode, one.books, one.kernel), []).append((one.first, one.last))
    return joined(
        [
            Difference(one.inode, *run, one.books, one.kernel)
            for one in some
            for run in common([(one.first, one.last)], sorted(known.get((one.inode, one.books, one.kernel), [])))
        ]
    )


def _order(one: Difference) -> tuple[int, str, str, int]:
    return one.inode, one.books, one.kernel, one.first


def _charges(whom: str) -> str:
    return f"charged to {whom}"


def _minus(some: Sequence[PageRange], others: Sequence[PageRange]) -> list[PageRange]:
    left = without(as_runs(some), as_runs(others) if others else NO_RUNS)
    return [(first, last) for first, last in left.tolist()]


def _pays(tenant: TenantId, held: SharingClass) -> bool:
    return tenant in held.payers
