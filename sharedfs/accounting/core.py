"""What all parts of the books share: the ledger, the tables beside it and the tape, under one lock.

Each part (`pages.py`, `tenants.py`, ...) is one idea and is made over one `Core`. Nothing outside this folder sees it.
The lock is held for a few microseconds, and across no system call but the few that keep what changes
(`persistence.py`). What concerns many pages is done in pieces of a millisecond at most; other threads get the lock in
between.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock

from sharedfs.accounting.detached import Detached
from sharedfs.accounting.quota import Allowances
from sharedfs.accounting.recorder import Tape
from sharedfs.accounting.unasked import Unasked
from sharedfs.api.types import Event
from sharedfs.common.errors import BrokenInvariant
from sharedfs.common.lane import PAUSE_SECONDS
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.creators import Makers
from sharedfs.ledger.kept_mappings import KeptMappings
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.no_op_cache import SettledUses
from sharedfs.ledger.open_readers import Readers
from sharedfs.ledger.page_ranges import PageRange, Runs, page_parts
from sharedfs.ledger.pieces import PIECE_CHUNKS
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import LedgerStorage, Log, rewrite
from sharedfs.ledger.tenant import TenantId, TenantTable
from sharedfs.linux.procfs import Process

RANGES_AT_ONCE = 64
"""Ranges that are charged one by one while the lock is held."""
_PIECE_PAGES = PIECE_CHUNKS * PAGES_PER_CHUNK
_END = object()


def pause() -> None:
    """Between two pieces: a thread that waits for the lock, or to run at all, gets it."""
    time.sleep(PAUSE_SECONDS)


class Core:
    """`page_bytes` is the unit of accounting. Call all but `in_pieces` and `in_turns` with the lock held."""

    def __init__(self, page_bytes: int, storage: LedgerStorage, log: Log) -> None:
        self.lock = Lock()
        self.page_bytes = page_bytes
        self.detached = Detached(self.lock)
        self.ledger = Ledger(page_bytes, storage=storage, tidies_itself=False, on_freed=self._freed)
        self.tenants = TenantTable(log)
        self.readers = Readers(log)
        """How many handles a tenant has through which it may read all of a file without a request."""
        self.allowances = Allowances(self.ledger, time.monotonic)
        self.settled = SettledUses(self.ledger, page_bytes)
        self.makers = Makers(self.tenants)
        self.unasked = Unasked()
        self.kept: KeptMappings[Process] = KeptMappings()
        self.by_range: tuple[dict[int, set[TenantId]], dict[int, set[TenantId]]] = {}, {}
        """By file the tenants that are billed by a mapping's range (`MappedPages.was_mapped`): of this generation of
        uses and of the one before. Some thousands of files at most."""
        self.tape: Tape | None = None
        self._log = log
        for record in log.records():
            if not (self.tenants.replay(record) or self.readers.replay(record)):
                raise BrokenInvariant(f"I7: the log of the tenants has a record that nothing explains: {record}")
        for tenant in self.tenants.live():
            self.allowances.above.join(tenant.id, tenant.path)

    def _freed(self, held: SharingClass, pages: int) -> None:
        self.detached.freed(held, pages)
        self.allowances.above.freed(held, pages * self.page_bytes)

    def tidy_log(self) -> None:
        if self._log.overgrown:
            self.write_log()

    def write_log(self, *, with_heirs: bool = True) -> None:
        """The log of tenants and readers anew; without heirs as the versions before read it."""
        rewrite(self._log, [self.tenants.dump(with_heirs=with_heirs), self.readers.dump()])

    def charge(self, inode: int, first: int, last: int, tenant: TenantId, *, foreign: bool = False) -> int:
        """`Ledger.charge`, which the tape hears of: how many of the pages are new."""
        if self.tape is not None:
            self.tape.use(Event.ALLOCATE, tenant, inode, first, last)
        return self.ledger.charge(inode, first, last, tenant, foreign=foreign)

    def set_mapped(self, inode: int, tenant: TenantId, pages: Runs) -> None:
        """`Ledger.set_mapped`, which the tape hears of."""
        self.ledger.set_mapped(inode, tenant, pages)
        self.record_mapped(inode, tenant, pages)

    def record_mapped(self, inode: int, tenant: TenantId, pages: Runs) -> None:
        if self.tape is not None:
            self.tape.mapped(inode, tenant, [(first, last) for first, last in pages.tolist()])

    def in_pieces(self, pages: Iterable[PageRange]) -> Iterator[Sequence[PageRange]]:
        """Parts of page ranges, each of few pages and few ranges; the lock is held while the caller has one."""
        parts = [part for run in pages for part in page_parts(run, _PIECE_PAGES)]
        pieces = [parts] if len(parts) == 1 else list(_few_pages(parts))
        for number, piece in enumerate(pieces):
            if number:
                pause()
            with self.lock:
                yield piece

    def in_turns(self, pieces: Iterator[object], holds: Callable[[], bool]) -> None:
        """Have all `pieces` done, each with the lock held, for as long as `holds` says before each."""
        while True:
            with self.lock:
                if not holds() or next(pieces, _END) is _END:
                    return
            pause()


def _few_pages(parts: Sequence[PageRange]) -> Iterator[Sequence[PageRange]]:
    """Parts together, as far as they are few and have few pages."""
    piece: list[PageRange] = []
    pages = 0
    for first, last in parts:
        if piece and (len(piece) == RANGES_AT_ONCE or pages + last - first + 1 > _PIECE_PAGES):
            yield piece
            piece, pages = [], 0
        piece.append((first, last))
        pages += last - first + 1
    if piece:
        yield piece
