"""Pages that come, are used and go: a line in the books for each, made by the request that did it.

`charge` and `touch` are called for each WRITE and READ that may change something: what they look up is bound once.
"""

from collections.abc import Callable, Iterable

from sharedfs.accounting.changes import Changes
from sharedfs.accounting.core import Core, pause
from sharedfs.accounting.recording import tell_anew
from sharedfs.accounting.swapped import SwappedPages
from sharedfs.api.types import Event
from sharedfs.ledger.holdings import used_bytes
from sharedfs.ledger.page_ranges import NO_RUNS, PageRange, as_runs, batched, gaps
from sharedfs.ledger.tenant import NOBODY, TenantId

_CHUNKS_TO_UNCHARGE = 64
_RANGES_TO_UNCHARGE = 1024


class Pages:
    def __init__(self, core: Core, changes: Changes, swapped: SwappedPages) -> None:
        self._core = core
        self._changes = changes
        self._swapped = swapped
        self._lock = core.lock
        self._ledger = core.ledger
        self._page_bytes = core.page_bytes
        self._allowances = core.allowances
        self._settled = core.settled
        self._makers = core.makers
        self._kept = core.kept
        self._if_live = core.tenants.if_live
        self._charge = core.charge

    # -- pages come and are used -------------------------------------------------------------------------------------

    def charge(self, inode: int, start: int, end: int, tenant: TenantId) -> None:
        """Bytes `start`..`end` (exclusive, not empty) of a file are resident and `tenant` used them."""
        with self._lock:
            before = self._ledger.sequence
            first, last = start // self._page_bytes, (end - 1) // self._page_bytes
            made = self._charge(inode, first, last, self._if_live(tenant))
            if made:
                self._allowances.spend(tenant, made * self._page_bytes)
            self._used(inode, tenant, before)

    def touch(self, inode: int, start: int, end: int, tenant: TenantId) -> None:
        """`tenant` used bytes `start`..`end` (exclusive, not empty) as far as they are resident."""
        with self._lock:
            self._touch(inode, start // self._page_bytes, (end - 1) // self._page_bytes, self._if_live(tenant))

    def _touch(self, inode: int, first: int, last: int, tenant: TenantId) -> None:
        before = self._ledger.sequence
        self._ledger.touch(inode, first, last, tenant)
        tape = self._core.tape
        if tape is not None and tenant != NOBODY:
            tape.use(Event.TOUCH, tenant, inode, first, last)
        self._used(inode, tenant, before)

    def _used(self, inode: int, tenant: TenantId, before: int) -> None:
        """After a use of a file. A tape wants to hear of all of them."""
        if self._ledger.sequence != before or self._core.tape is not None:
            self._settled.changed()
            self._makers.used(inode, tenant)
        else:
            self._settled.unchanged(inode, tenant)

    def touch_pages(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """As `touch`, of page ranges (inclusive)."""
        for first, last in pages:
            self.touch(inode, first * self._page_bytes, (last + 1) * self._page_bytes, tenant)

    def touch_unasked(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """As `touch_pages`, where nobody can tell whether `tenant` has used the pages: it is taken for their user.

        In pieces; each is counted with the lock that it is booked with, so that no reading has the one alone.
        """
        for part in self._core.in_pieces(pages):
            if tenant not in self._core.tenants:
                return
            before = used_bytes(self._ledger.holdings_in(inode, part).items(), tenant)
            for first, last in part:
                self._touch(inode, first, last, tenant)
            after = used_bytes(self._ledger.holdings_in(inode, part).items(), tenant)
            self._core.unasked.added[tenant] += after - before

    def charge_allocated(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """`tenant` had page ranges (inclusive) made resident and has used none of them yet.

        What was there already is not its to pay for (I10).
        """
        for part in self._core.in_pieces(pages):
            for first, last in self._ledger.absent(inode, part):
                self._charge(inode, first, last, self._if_live(tenant))
                self._allowances.spend(tenant, (last - first + 1) * self._page_bytes)
            if tenant != NOBODY:
                self._makers.used(inode, tenant)

    def charge_strays(
        self, inode: int, pages: Iterable[PageRange], tenant: TenantId = NOBODY, *, foreign: bool = True
    ) -> None:
        """Book what is absent of page ranges (inclusive), which are resident: nobody saw who did that.

        The kernel charged such pages to whoever faulted: they are foreign (I2), and unclaimed where that is not known.
        """
        for part in self._core.in_pieces(pages):
            for first, last in self._ledger.absent(inode, part):
                maker = self._if_live(tenant)
                self._charge(inode, first, last, maker, foreign=foreign)
                if maker != NOBODY:
                    self._makers.used(inode, maker)

    def take_foreign(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """The kernel charges `tenant`, or a cgroup that is gone (NOBODY), for what is foreign of page ranges."""
        for part in self._core.in_pieces(pages):
            for first, last in part:
                self._ledger.recharge(inode, first, last, self._if_live(tenant))

    def hand_over(self, inode: int, tenant: TenantId) -> tuple[int, int]:
        """The resident pages of a file are `tenant`'s, or nobody's; the bytes that it owns now, and foreign ones."""
        with self._lock:
            tenant = self._if_live(tenant)
            before = self._ledger.file_holdings(inode)
            self._ledger.hand_over(inode, tenant)
            foreign_bytes = sum(held_bytes for held, held_bytes in before if held.foreign)
            handed_bytes = sum(held_bytes for _, held_bytes in before) - foreign_bytes
            if handed_bytes and tenant != NOBODY:
                self._makers.handed(inode, tenant)
                self._core.unasked.handed[tenant] += sum(
                    size for held, size in before if held.owner != tenant and not held.foreign
                )
                self._allowances.spend(tenant, sum(size for held, size in before if tenant not in held.payers))
            if self._core.tape is not None:
                tell_anew(self._core.tape, self._ledger, inode)
            return handed_bytes, foreign_bytes

    def recharge(self, inode: int, start: int, end: int) -> None:
        """The kernel charges the resident pages in bytes `start`..`end` (exclusive, not empty) to the pool now."""
        with self._lock:
            self._ledger.recharge(inode, start // self._page_bytes, (end - 1) // self._page_bytes)

    # -- pages go ----------------------------------------------------------------------------------------------------

    def uncharge(self, inode: int, first: int, last: int, kept: Iterable[PageRange] = ()) -> None:
        """Pages `first`..`last` are gone, but for `kept` ranges: a huge page that could not be split.

        In pieces. Nobody may make pages there meanwhile.
        """
        with self._lock:
            self._changes.shrunk.add(inode)
        ranges = list(gaps(kept, first, last))
        gone = as_runs(ranges) if len(ranges) > 1 else NO_RUNS
        for part in batched(ranges, _RANGES_TO_UNCHARGE):
            with self._lock:
                self._begin_uncharge(inode, part)
                chunks = self._ledger.chunks_of(inode, first, last)
        if not ranges:
            return
        for number, indices in enumerate(batched(chunks, _CHUNKS_TO_UNCHARGE)):
            if number:
                pause()
            with self._lock:
                one = len(ranges) == 1
                ledger = self._ledger
                if ledger.uncharge(inode, *ranges[0], indices) if one else ledger.uncharge_runs(inode, gone, indices):
                    self._changes.shrunk.add(inode)

    def lose_absent(self, inode: int, first: int, last: int, there: Callable[[int, int], Iterable[PageRange]]) -> None:
        """Of the pages `first`..`last` (few of them) a file has lost, without being asked to, what is not `there`.

        That is asked with the lock held, and who brings a page writes it down afterwards: one that comes meanwhile is
        booked anew. The shortcut in C must not think that this line can be left out.
        """
        with self._lock:
            if inode not in self._changes.in_change:
                self._settled.forget()
                self._changes.doubtful.add(inode)  # what is mapped there by now is another page
                gone = list(gaps(there(first, last), first, last))
                if not gone:
                    return
                self._begin_uncharge(inode, gone)
                if self._ledger.uncharge_runs(inode, as_runs(gone), self._ledger.chunks_of(inode, first, last)):
                    self._changes.shrunk.add(inode)

    def _begin_uncharge(self, inode: int, gone: Iterable[PageRange]) -> None:
        """With the lock held: all of it but the ledger's part."""
        self._changes.shrinks += 1
        for gap in gone:
            self._kept.uncharge(inode, *gap)
            if self._core.tape is not None:
                self._core.tape.free(inode, *gap)

    def drop(self, inode: int) -> None:
        """The file is gone with all its pages."""
        with self._lock:
            self._changes.shrunk.add(inode)
            self._changes.shrinks += 1
            self._kept.uncharge(inode, 0)
            self._makers.drop(inode)
            self._swapped.drop(inode)
            self._changes.doubtful.discard(inode)
            self._ledger.drop(inode)
            if self._core.tape is not None:
                self._core.tape.free(inode, 0, None)
