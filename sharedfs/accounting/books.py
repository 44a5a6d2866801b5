"""The pool's books: the ledger and the tenants under one lock, for the threads that keep them.

The data path (its own thread), the namespace, the mapping scan and the feed (trio's thread) all write or read here. The
lock is held for a few microseconds, and across no system call but the few that keep what changes (`books_state`). What
concerns many pages is done in pieces of a millisecond at most; other threads get the lock in between.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from sharedfs.accounting.persistence import BooksState
from sharedfs.accounting.quota import Allowances, first_allowance
from sharedfs.accounting.recorder import Tape
from sharedfs.api.types import NOBODY_PATH, Event
from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.class_view import Predicate, Verdicts
from sharedfs.ledger.creators import Makers
from sharedfs.ledger.kept_mappings import KeptMappings
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.no_op_cache import SettledUses
from sharedfs.ledger.open_readers import Reader, Readers
from sharedfs.ledger.page_ranges import LAST_PAGE, NO_RUNS, PageRange, Runs, as_runs, batched, gaps, page_parts, without
from sharedfs.ledger.pieces import PIECE_CHUNKS
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage, Log, MemoryLog, rewrite
from sharedfs.ledger.tenant import NOBODY, TenantId, TenantTable
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.linux.procfs import Process

log = logging.getLogger("sharedfs")

_ALL_PAGES = as_runs([(0, LAST_PAGE)])
_FILES_AT_ONCE = 2048  # looked at while the lock is held: a millisecond
_MAPS_AT_ONCE = 256  # read after a start, while the lock is held: a few milliseconds
_CHUNKS_TO_UNCHARGE = 64
_RANGES_TO_UNCHARGE = 1024
_RANGES_AT_ONCE = 64  # that are charged one by one
_PIECE_PAGES = PIECE_CHUNKS * PAGES_PER_CHUNK
_END = object()
_PAUSE_SECONDS = 0.0001  # between two pieces: who waits for the lock, or to run at all, gets it


class Books:
    """What the pool holds and who uses it. `page_bytes` is the unit of accounting.

    `state_fd` is a directory that outlives this process: the books continue those that they find in it, and are kept
    there. None: they live and die with this object. Raises HostFault when the state cannot be read or kept.
    """

    def __init__(
        self, hierarchy: MemoryHierarchy, page_bytes: int, rules: TenantRules, state_fd: int | None = None
    ) -> None:
        self.hierarchy = hierarchy
        self.rules = rules
        self.page_bytes = page_bytes
        self.lock = threading.Lock()
        self._state = None if state_fd is None else BooksState(state_fd)
        storage = LedgerStorage() if self._state is None else self._state.ledger
        self.ledger = Ledger(page_bytes, storage=storage, tidies_itself=False)
        self._log: Log = MemoryLog() if self._state is None else self._state.tenants
        self.tenants = TenantTable(self._log)
        self.allowances = Allowances(self.ledger, time.monotonic)
        self.settled = SettledUses(self.ledger, page_bytes)
        self._makers = Makers(self.tenants)
        self._blind = False
        self._swapped: dict[int, list[PageRange]] = {}
        self.swap_looks = 0
        """Rises when other pages are in swap than at the look before."""
        # Rises with each exit: a name of a cgroup then has to be looked up anew.
        self.exits = 0
        self._tape: Tape | None = None
        # How many handles a tenant has with which it reads a file without asking us, and may have read all of it.
        self._readers = Readers(self._log)
        self._closed: dict[Reader, None] = {}  # large files that were read so until they were closed
        # Files that lost pages since the running mapping scan began: what it saw of them may be gone.
        self._shrunk: set[int] = set()
        # Files that were mapped where the books have no page, and that had shrunk meanwhile: the next scan tells.
        self._doubtful: set[int] = set()
        self.in_change: set[int] = set()
        self.shrinking: set[int] = set()
        """Files that lose pages just now, in a thread beside the request pump: nobody is to copy or move these."""
        self.kept: KeptMappings[Process] = KeptMappings()
        self.shrinks = 0
        """Rises whenever pages go: what was seen of page tables before may be gone."""
        for record in self._log.records():
            if not (self.tenants.replay(record) or self._readers.replay(record)):
                raise BrokenInvariant(f"I7: the log of the tenants has a record that nothing explains: {record}")

    def close(self) -> None:
        """Hold no descriptor of the state any more."""
        if self._state is not None:
            self._state.close()

    def _tidy_log(self) -> None:
        if self._log.overgrown:
            rewrite(self._log, [self.tenants.dump(), self._readers.dump()])

    # -- tenants -----------------------------------------------------------------------------------------------------

    def tenant_in(self, proc_cgroup: bytes) -> TenantId:
        """The tenant of who has this /proc/PID/cgroup; NOBODY when there is no such cgroup (any more)."""
        path = self.hierarchy.path_in(proc_cgroup)
        return NOBODY if path is None else self.tenant_at(path)

    def tenant_at(self, path: str) -> TenantId:
        """The tenant of a process in the cgroup at `path`; NOBODY when there is no such cgroup."""
        cgroup = self.hierarchy.find(self.rules.tenant_path(path))
        if cgroup is None:
            return NOBODY
        with self.lock:
            tenant = self.tenants.intern(cgroup.path, cgroup.inode)
            self._tidy_log()
            is_new = self.allowances.lack(tenant)
        if is_new:  # a tenant has an allowance from its first request on
            limits = MemoryLimits(self.hierarchy, cgroup.path)
            try:
                room_bytes = first_allowance(limits.read(sys.maxsize))
            finally:
                limits.close()
            with self.lock:
                self.allowances.begin(tenant, room_bytes)
        return tenant

    def cgroup_of(self, tenant: TenantId) -> CgroupRef | None:
        """The cgroup of a tenant that lives, as far as is known."""
        with self.lock:
            known = self.tenants.get(tenant)
        return None if known is None else CgroupRef(known.path, known.inode)

    def dead_tenants(self) -> list[TenantId]:
        """The tenants whose cgroup is gone, or whose path is another cgroup's now. Nobody without a hierarchy."""
        with self.lock:
            known = self.tenants.live()
        dead = [tenant.id for tenant in known if not self.hierarchy.lives(CgroupRef(tenant.path, tenant.inode))]
        if dead and not self.hierarchy.stands():
            if not self._blind:
                log.warning("%s: no cgroup hierarchy there any more: nobody exits until it is", self.hierarchy.mount)
            self._blind = True
            return []
        self._blind = False
        return dead

    def exit(self, tenants: Iterable[TenantId]) -> None:
        """These cgroups are gone. `tidy` is to follow. The lock is let go between two tenants."""
        for tenant in tenants:
            with self.lock:
                self._readers.forget(tenant)
                self.ledger.exit(tenant)
                self.allowances.forget(tenant)
                if self._tape is not None:
                    self._tape.exit(tenant)
                # last: a tenant that is known here is asked after again
                self._makers.gone(tenant, self.tenants.remove(tenant).path)
                self.exits += 1
            self._tidy_log()

    def age(self) -> None:
        """`Ledger.age`."""
        with self.lock:
            self.ledger.age()

    def tidy(self) -> None:
        """What the ledger has to do for itself, in pieces: `Ledger.tidy_some`. Not for the request pump."""
        while self.ledger.untidy:
            with self.lock:
                self.ledger.tidy_some()
            time.sleep(_PAUSE_SECONDS)

    def _if_live(self, tenant: TenantId) -> TenantId:
        """NOBODY for a tenant that exited since its thread was looked up: no exit would take it out of the books."""
        return NOBODY if self.tenants.get(tenant) is None else tenant

    # -- pages -------------------------------------------------------------------------------------------------------

    def charge(self, inode: int, start: int, end: int, tenant: TenantId) -> None:
        """Bytes `start`..`end` (exclusive, not empty) of a file are resident and `tenant` used them."""
        with self.lock:
            before = self.ledger.sequence
            first, last = start // self.page_bytes, (end - 1) // self.page_bytes
            made = self._charge(inode, first, last, self._if_live(tenant))
            if made:
                self.allowances.spend(tenant, made * self.page_bytes)
            self._used(inode, tenant, before)

    def charge_allocated(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """`tenant` had page ranges (inclusive) made resident and has used none of them yet.

        What was there already is not its to pay for (I10).
        """
        for part in self._in_pieces(pages):
            for first, last in self.ledger.absent(inode, part):
                self._charge(inode, first, last, self._if_live(tenant))
                self.allowances.spend(tenant, (last - first + 1) * self.page_bytes)
            if tenant != NOBODY:
                self._makers.used(inode, tenant)

    def _in_pieces(self, pages: Iterable[PageRange]) -> Iterator[Sequence[PageRange]]:
        """Parts of page ranges, each of few pages and few ranges; the lock is held while the caller has one."""
        parts = [part for run in pages for part in page_parts(run, _PIECE_PAGES)]
        pieces = [parts] if len(parts) == 1 else list(_few_pages(parts))
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(_PAUSE_SECONDS)
            with self.lock:
                yield piece

    @contextmanager
    def admitted(self, inode: int, start: int, end: int, tenant: TenantId) -> Iterator[None]:
        """While `tenant` makes bytes `start`..`end` (exclusive) of a file resident, and books what it made.

        Raises OSError (EDQUOT) before anything is done where its allowance does not cover what is absent.
        """
        taken_bytes = self.take_allowance(inode, start, end, tenant)
        try:
            yield
        finally:
            self.give_back_allowance(tenant, taken_bytes)

    def take_allowance(self, inode: int, start: int, end: int, tenant: TenantId) -> int:
        """As `admitted`, for what ends in another thread: how much was taken, to be given back then."""
        if tenant not in self.allowances.left or start >= end:
            return 0
        pages = [(start // self.page_bytes, (end - 1) // self.page_bytes)]
        with self.lock:
            absent = sum(last - first + 1 for first, last in self.ledger.absent(inode, pages))
            self.allowances.take(tenant, absent * self.page_bytes)
        return absent * self.page_bytes

    def give_back_allowance(self, tenant: TenantId, taken_bytes: int) -> None:
        if taken_bytes:
            with self.lock:
                self.allowances.give_back(tenant, taken_bytes)

    def charge_strays(self, inode: int, pages: Iterable[PageRange]) -> None:
        """Book what is absent of page ranges (inclusive), which are resident: nobody saw who did that.

        The kernel charged such pages to whoever faulted: they are foreign, and unclaimed (I2).
        """
        for part in self._in_pieces(pages):
            for first, last in self.ledger.absent(inode, part):
                self._charge(inode, first, last, NOBODY, foreign=True)

    def hand_over(self, inode: int, tenant: TenantId) -> tuple[int, int]:
        """The resident pages of a file are `tenant`'s, or nobody's; the bytes that it owns now, and foreign ones."""
        with self.lock:
            tenant = self._if_live(tenant)
            before = self.ledger.file_holdings(inode)
            self.ledger.hand_over(inode, tenant)
            foreign_bytes = sum(held_bytes for held, held_bytes in before if held.foreign)
            handed_bytes = sum(held_bytes for _, held_bytes in before) - foreign_bytes
            if handed_bytes and tenant != NOBODY:
                self._makers.handed(inode, tenant)
                self.allowances.spend(tenant, sum(size for held, size in before if tenant not in held.payers))
            if self._tape is not None:
                self._tell_anew(self._tape, inode)
            return handed_bytes, foreign_bytes

    def recharge(self, inode: int, start: int, end: int) -> None:
        """The kernel charges the resident pages in bytes `start`..`end` (exclusive, not empty) to the pool now."""
        with self.lock:
            self.ledger.recharge(inode, start // self.page_bytes, (end - 1) // self.page_bytes)

    def holdings(self) -> list[tuple[SharingClass, int]]:
        """`Ledger.holdings`, worked out without the lock."""
        with self.lock:
            classes = self.ledger.classes()
        return self.ledger.holdings_of(classes)

    def bytes_where(self, wanted: Predicate) -> int:
        return sum(held_bytes for held, held_bytes in self.holdings() if wanted(held))

    def files_where(self, wanted: Predicate) -> list[int]:
        """Files with pages in a class that is `wanted`, ascending. The lock is let go between parts of the files.

        A file that changes meanwhile is as it was when its part was looked at.
        """
        with self.lock:
            files, classes = self.ledger.all_files(), self.ledger.classes()
        verdicts = Verdicts(classes, wanted)
        found: list[int] = []
        for part in batched(files, _FILES_AT_ONCE):
            with self.lock:
                found += self.ledger.files_among(part, verdicts)
        return sorted(found)

    def runs_where(self, inode: int, wanted: Predicate) -> list[PageRange]:
        with self.lock:
            return self.ledger.runs_where(inode, wanted)

    def file_holdings(self, inode: int) -> list[tuple[SharingClass, int]]:
        """`Ledger.file_holdings`, worked out without the lock where the file has many classes."""
        with self.lock:
            if not self.ledger.is_large(inode):
                return self.ledger.file_holdings(inode)
            counts, classes = self.ledger.counts_of(inode), self.ledger.classes()
        return [(held, count * self.page_bytes) for held, count in classes.held_by(counts)]

    @contextmanager
    def changing(self, inode: int) -> Iterator[None]:
        """While pages of a file come or go and their line in the books is to follow, however long that takes.

        One at a time for a file, as the kernel lets them in.
        """
        with self.lock:
            self.in_change.add(inode)
        try:
            yield
        finally:
            self.in_change.discard(inode)

    def begin_shrinking(self, inode: int) -> None:
        """Pages of a file are about to go, without a lock. With the store's lock held: who moves pages has it, too."""
        with self.lock:
            self.shrinking.add(inode)
            self._shrunk.add(inode)

    def end_shrinking(self, inode: int) -> None:
        with self.lock:
            self._shrunk.add(inode)
            self.shrinking.discard(inode)

    def absent(self, inode: int, pages: list[PageRange]) -> list[PageRange]:
        with self.lock:
            return self.ledger.absent(inode, pages)

    def has_foreign(self, inode: int) -> bool:
        return any(held.foreign for held, _ in self.file_holdings(inode))

    def resident_bytes(self) -> int:
        with self.lock:
            return self.ledger.resident_bytes

    def resident_bytes_of(self, inode: int) -> int:
        with self.lock:
            return self.ledger.resident_pages_of(inode) * self.page_bytes

    def touch(self, inode: int, start: int, end: int, tenant: TenantId) -> None:
        """`tenant` used bytes `start`..`end` (exclusive, not empty) as far as they are resident."""
        with self.lock:
            before = self.ledger.sequence
            first, last, tenant = start // self.page_bytes, (end - 1) // self.page_bytes, self._if_live(tenant)
            self.ledger.touch(inode, first, last, tenant)
            if self._tape is not None and tenant != NOBODY:
                self._tape.use(Event.TOUCH, tenant, inode, first, last)
            self._used(inode, tenant, before)

    def _used(self, inode: int, tenant: TenantId, before: int) -> None:
        """After a use of a file. A tape wants to hear of all of them."""
        if self.ledger.sequence != before or self._tape is not None:
            self.settled.changed()
            self._makers.used(inode, tenant)
        else:
            self.settled.unchanged(inode, tenant)

    def uncharge(self, inode: int, first: int, last: int, kept: Iterable[PageRange] = ()) -> None:
        """Pages `first`..`last` are gone, but for `kept` ranges: a huge page that could not be split."""
        with self.lock:
            self._shrunk.add(inode)
        self._uncharge(inode, first, last, kept)

    def lose_absent(self, inode: int, first: int, last: int, there: Callable[[int, int], Iterable[PageRange]]) -> None:
        """Of the pages `first`..`last` (few of them) a file has lost, without being asked to, what is not `there`.

        That is asked with the lock held, and who brings a page writes it down afterwards: one that comes meanwhile is
        booked anew. The shortcut in C must not think that this line can be left out.
        """
        with self.lock:
            if inode not in self.in_change:
                self.settled.forget()
                self._doubtful.add(inode)  # what is mapped there by now is another page
                gone = list(gaps(there(first, last), first, last))
                if not gone:
                    return
                self._begin_uncharge(inode, gone)
                if self.ledger.uncharge_runs(inode, as_runs(gone), self.ledger.chunks_of(inode, first, last)):
                    self._shrunk.add(inode)

    def _uncharge(self, inode: int, first: int, last: int, kept: Iterable[PageRange]) -> None:
        """In pieces. Nobody may make pages there meanwhile."""
        ranges = list(gaps(kept, first, last))
        gone = as_runs(ranges) if len(ranges) > 1 else NO_RUNS
        for part in batched(ranges, _RANGES_TO_UNCHARGE):
            with self.lock:
                self._begin_uncharge(inode, part)
                chunks = self.ledger.chunks_of(inode, first, last)
        if not ranges:
            return
        for number, indices in enumerate(batched(chunks, _CHUNKS_TO_UNCHARGE)):
            if number:
                time.sleep(_PAUSE_SECONDS)
            with self.lock:
                one = len(ranges) == 1
                ledger = self.ledger
                if ledger.uncharge(inode, *ranges[0], indices) if one else ledger.uncharge_runs(inode, gone, indices):
                    self._shrunk.add(inode)

    def _begin_uncharge(self, inode: int, gone: Iterable[PageRange]) -> None:
        """With the lock held: all of it but the ledger's part."""
        self.shrinks += 1
        for gap in gone:
            self.kept.uncharge(inode, *gap)
            if self._tape is not None:
                self._tape.free(inode, *gap)

    def chunks_of(self, inode: int, first: int, last: int) -> list[int]:
        """The chunks of PAGES_PER_CHUNK pages that have pages in a range, by number, in order. O(chunks log chunks)."""
        with self.lock:
            chunks = self.ledger.chunks_of(inode, first, last)
        return sorted(chunks)

    def drop(self, inode: int) -> None:
        """The file is gone with all its pages."""
        with self.lock:
            self._shrunk.add(inode)
            self.shrinks += 1
            self.kept.uncharge(inode, 0)
            self._makers.drop(inode)
            self._swapped.pop(inode, None)
            self._doubtful.discard(inode)
            self.ledger.drop(inode)
            if self._tape is not None:
                self._tape.free(inode, 0, None)

    def _charge(self, inode: int, first: int, last: int, tenant: TenantId, *, foreign: bool = False) -> int:
        """The pages that are new."""
        if self._tape is not None:
            self._tape.use(Event.ALLOCATE, tenant, inode, first, last)
        return self.ledger.charge(inode, first, last, tenant, foreign=foreign)

    def _set_mapped(self, inode: int, tenant: TenantId, pages: Runs) -> None:
        self.ledger.set_mapped(inode, tenant, pages)
        self._record_mapped(inode, tenant, pages)

    def _record_mapped(self, inode: int, tenant: TenantId, pages: Runs) -> None:
        if self._tape is not None:
            self._tape.mapped(inode, tenant, [(first, last) for first, last in pages.tolist()])

    def maker_of(self, inode: int) -> str | None:
        """The cgroup that first had pages of a file, also when it is gone; None when we do not know."""
        with self.lock:
            return self._makers.path_of(inode)

    def forget_makers(self) -> None:
        """Of files that are gone. O(files + tenants)."""
        with self.lock:
            self._makers.tidy()

    # -- swap --------------------------------------------------------------------------------------------------------

    def set_swapped(self, swapped: dict[int, list[PageRange]]) -> None:
        """Which pages (inclusive ranges, apart) of which files are in swap, as the last look found it."""
        with self.lock:
            if self._swapped != swapped:
                self._swapped = swapped
                self.swap_looks += 1

    def swapped(self, inode: int | None = None) -> dict[SharingClass, int]:
        """The bytes in swap of each class, of one file or all. In pieces: a page counts as it is when its piece is."""
        with self.lock:
            swapped = [(known, runs) for known, runs in self._swapped.items() if inode in (None, known)]
        found: dict[SharingClass, int] = {}
        for known, runs in swapped:
            for part in self._in_pieces(runs):
                for held, held_bytes in self.ledger.holdings_in(known, part).items():
                    found[held] = found.get(held, 0) + held_bytes
        return found

    # -- mappings ----------------------------------------------------------------------------------------------------

    def mapped(self) -> set[tuple[int, TenantId]]:
        """The files and tenants of which the books say that pages are mapped; a fast reader counts as one."""
        with self.lock:
            files = self.ledger.all_files()
        found: set[tuple[int, TenantId]] = set()
        for part in batched(files, _MAPS_AT_ONCE):
            with self.lock:
                found |= self.ledger.mapped_among(part)
        return found

    def begin_scan(self) -> None:
        with self.lock:
            self._shrunk = set(self.shrinking)

    def unbooked(self, inode: int, tenant: TenantId, pages: Runs) -> Runs:
        """Which of the pages that `tenant` maps the books do not have. O(ranges) when all is as before.

        Not for the request pump: in pieces.
        """
        with self.lock:
            if inode not in self._doubtful and self.ledger.is_mapped(inode, tenant, pages):
                return NO_RUNS
            chunks = self.ledger.chunks_of(inode)
        resident: list[PageRange] = []
        for part in batched(chunks, PIECE_CHUNKS):
            with self.lock:
                resident += self.ledger.resident_in(inode, part)
            time.sleep(_PAUSE_SECONDS)
        return without(pages, as_runs(resident))

    def set_mapped(
        self, inode: int, tenant: TenantId, pages: Runs, brought: Sequence[PageRange] = (), *, adds: bool = False
    ) -> None:
        """`tenant` maps just these pages of a file, as the running scan saw it. Not for the request pump: in pieces.

        `adds`: and those that it mapped before, for the scan did not see all.

        Pages in `brought` that are not resident in the books were allocated by a page fault in a hole, which the kernel
        charged to the tenant: they become `foreign` (I2). Not so in a file that shrank meanwhile; the next scan tells.
        """
        for part in self._in_pieces(brought):
            if self.tenants.get(tenant) is not None and inode not in self._shrunk:
                for first, last in self.ledger.absent(inode, part):
                    self._charge(inode, first, last, tenant, foreign=True)
                    self._makers.used(inode, tenant)
        with self.lock:
            if self.tenants.get(tenant) is None:
                return
            (self._doubtful.add if inode in self._shrunk else self._doubtful.discard)(inode)
            if (inode, tenant) in self._readers:
                return
            if adds:
                pieces = self._adding(inode, tenant, pages)
            else:
                self._record_mapped(inode, tenant, pages)
                pieces = self.ledger.mapping(inode, tenant, pages)
        while True:
            with self.lock:  # who exits, or reads past us, meanwhile has its pages as that says
                if self.tenants.get(tenant) is None or (inode, tenant) in self._readers:
                    return
                if next(pieces, _END) is _END:
                    return
            time.sleep(_PAUSE_SECONDS)

    def _adding(self, inode: int, tenant: TenantId, pages: Runs) -> Iterator[None]:
        for part in batched([(first, last) for first, last in pages.tolist()], _RANGES_AT_ONCE):
            self.ledger.add_mapped(inode, tenant, part)
            yield
        if self._tape is not None:  # which is told all that is mapped
            runs = self.ledger.class_runs(inode)
            self._tape.mapped(inode, tenant, [(first, last) for first, last, held in runs if tenant in held.mapped])

    def keep_mapped(self, inode: int, process: Process, tenant: TenantId, pages: list[PageRange], shrinks: int) -> None:
        """`process` of `tenant` maps these pages, which the kernel is about to take out of its page tables.

        It stays their user until it unmaps them (`kept`). What it brought into holes is booked as by `set_mapped`,
        unless pages went since `shrinks` was read.
        """
        with self.lock:
            if self.tenants.get(tenant) is None:
                return
            if self.shrinks == shrinks:
                for first, last in self.ledger.absent(inode, pages):
                    self._charge(inode, first, last, tenant, foreign=True)
            self.kept.keep(inode, process, pages)
        self.touch_pages(inode, pages, tenant)

    def touch_pages(self, inode: int, pages: Iterable[PageRange], tenant: TenantId) -> None:
        """As `touch`, of page ranges (inclusive)."""
        for first, last in pages:
            self.touch(inode, first * self.page_bytes, (last + 1) * self.page_bytes, tenant)

    # -- handles that read past us -----------------------------------------------------------------------------------

    def open_for_reading(self, inode: int, tenant: TenantId, request: int = 0) -> TenantId:
        """`tenant` has one more handle through which it may read all of a file unseen: it uses all its pages.

        Returns whom to name when the handle is closed: NOBODY for a tenant that has exited. `request` is the number of
        the request that asks for it: asked again after our death, it counts once.
        """
        with self.lock:
            tenant = self._if_live(tenant)
            if tenant != NOBODY:
                self._readers.add((inode, tenant), 1, request)
                self._record_mapped(inode, tenant, _ALL_PAGES)
                next(self.ledger.mapping(inode, tenant, _ALL_PAGES), None)  # the rest of a large file: the next scan
                self._tidy_log()
            return tenant

    def close_for_reading(self, inode: int, tenant: TenantId, request: int = 0) -> None:
        """One handle less. The last one ends the use, which counts as a touch; the next scan finds what is mapped."""
        with self.lock:
            if self.tenants.get(tenant) is None:
                return  # it has exited
            if not self._readers.add((inode, tenant), -1, request):
                if self.ledger.is_large(inode):
                    self._closed[inode, tenant] = None
                else:
                    self._set_mapped(inode, tenant, _ALL_PAGES)  # also what became resident since the last scan
                    self._set_mapped(inode, tenant, NO_RUNS)
            self._tidy_log()

    def refresh_readers(self) -> None:
        """Readers use what has become resident since they opened, too. O(readers) when nothing has.

        And large files that were closed are used no more. Not for the request pump: in pieces.
        """
        with self.lock:
            readers, closed = list(self._readers), list(self._closed)
        for reader in readers:
            self._read_by(reader, _ALL_PAGES, lambda reader: reader in self._readers)
        for reader in closed:
            for pages in (_ALL_PAGES, NO_RUNS):
                self._read_by(reader, pages, lambda reader: reader in self._closed and reader not in self._readers)
            self._closed.pop(reader, None)

    def _read_by(self, reader: Reader, pages: Runs, holds: Callable[[Reader], bool]) -> None:
        """`set_mapped` in pieces, for as long as what is said of a reader holds."""
        inode, tenant = reader
        with self.lock:
            if not holds(reader) or self.ledger.is_mapped(inode, tenant, pages):
                return
            self._record_mapped(inode, tenant, pages)
            pieces = self.ledger.mapping(inode, tenant, pages)
        while True:
            with self.lock:
                if not holds(reader) or self.tenants.get(tenant) is None or next(pieces, _END) is _END:
                    return
            time.sleep(_PAUSE_SECONDS)

    def readers_of(self, inode: int) -> tuple[TenantId, ...]:
        """The tenants with such a handle. Call with the lock held. O(readers)."""
        return self._readers.of(inode)

    # -- recording ---------------------------------------------------------------------------------------------------

    def begin_tape(self) -> bool:
        """Record from now on, beginning with what is there; False when somebody does already. O(pages), once."""
        with self.lock:
            if self._tape is not None and not self._tape.full:
                return False
            self._tape = Tape(self._path_of)
            # What is known to change nothing is not asked again: now it has to be.
            self.settled.forget()
            for inode in self.ledger.files():
                self._tell(self._tape, inode)
            return True

    def _tell(self, tape: Tape, inode: int) -> None:
        """All that the books say of a file. O(pages)."""
        runs = self.ledger.class_runs(inode)
        for first, last, held in runs:
            tape.use(Event.ALLOCATE, held.owner, inode, first, last)
            for tenant in sorted(held.recent | held.older):
                tape.use(Event.TOUCH, tenant, inode, first, last)
        mappers = {tenant for *_, held in runs for tenant in held.mapped}
        for tenant in sorted(mappers):
            tape.mapped(inode, tenant, [(first, last) for first, last, held in runs if tenant in held.mapped])

    def _tell_anew(self, tape: Tape, inode: int) -> None:
        """A trace has no word for a file that is handed over: it is freed, and made by its new owner."""
        for held, _ in self.ledger.file_holdings(inode):
            for tenant in sorted(held.mapped):
                tape.mapped(inode, tenant, [])
        tape.free(inode, 0, None)
        self._tell(tape, inode)

    def take_tape(self) -> tuple[bytes, dict[TenantId, str], bool] | None:
        """What `Tape.take` gives, and whether that was the last of it; None when nobody records."""
        with self.lock:
            if self._tape is None:
                return None
            taken, full = self._tape.take(), self._tape.full
            if full:
                self._tape = None
            return *taken, full

    def _path_of(self, tenant: TenantId) -> str:
        known = self.tenants.get(tenant)
        return NOBODY_PATH if known is None else known.path

    def end_tape(self) -> None:
        with self.lock:
            self._tape = None


def _few_pages(parts: Sequence[PageRange]) -> Iterator[Sequence[PageRange]]:
    """Parts together, as far as they are few and have few pages."""
    piece: list[PageRange] = []
    pages = 0
    for first, last in parts:
        if piece and (len(piece) == _RANGES_AT_ONCE or pages + last - first + 1 > _PIECE_PAGES):
            yield piece
            piece, pages = [], 0
        piece.append((first, last))
        pages += last - first + 1
    if piece:
        yield piece
