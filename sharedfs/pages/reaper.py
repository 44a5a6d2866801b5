"""The reaper: frees files that have no name and no user any more, in pieces, in a thread of its own.

The kernel frees a file's pages in the system call that ends the file, 0.14 ms for each MiB, and everybody would wait
for the thread that makes this call. So a large file that the kernel has forgotten stays in removed/, and the reaper
punches out some MiB at a time. Each piece leaves the books when it has left the tmpfs: until then
its payers pay for it. Small files come here when the kernel forgets many at once.

removed/ is the record: a daemon that is killed in between leaves the rest there, and its successor goes on.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from itertools import islice
from typing import TypeVar

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.ledger.page_ranges import LAST_PAGE
from sharedfs.pages.allocation import Allocation
from sharedfs.storage.fault_injection import REAP, Faults, Point
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

FEW_PAGES = 64
"""A file with so many pages or fewer is freed at once: 40 us."""
PIECE_PAGES = 2048
"""Freed at once by the reaper: 1 ms."""
PIECE_FILES = 64
"""So many small files are one piece: 1 ms."""
_PIECE_CHUNKS = 32
_PAUSE_SECONDS = 0.0002
_RETRY_SECONDS = 0.1

Outcome = TypeVar("Outcome")


@dataclass(slots=True)
class _Dying:
    inode: int
    name: bytes
    fd: int
    chunks: list[int]


class Reaper:
    """For one pool. From any thread."""

    def __init__(
        self,
        store: Store,
        books: Books,
        allocation: Allocation,
        faults: Faults | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_error` is told in the reaper's thread what broke it."""
        self._store = store
        self._books = books
        self._allocation = allocation
        self._faults = faults
        self._waiting: dict[int, bytes] = {}
        self._emptied: set[int] = set()  # of these, those that the kernel still knows: only their pages go
        self._entries = threading.Lock()  # over these two: whoever adds one holds other locks than who takes one out
        self._current: _Dying | None = None
        self.pieces = 0
        """So many pieces have been freed, since the start."""
        self._turn = threading.Lock()  # over one piece
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._on_error = _raise if on_error is None else on_error

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What is not freed yet stays in removed/."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._current is not None:
            os.close(self._current.fd)

    def takes(self, inode: int) -> bool:
        """Whether a file in removed/ is large, or is being freed already. O(its classes)."""
        return (
            inode in self._emptied
            or self._books.questions.resident_bytes_of(inode) > FEW_PAGES * self._books.page_bytes
        )

    def add(self, inode: int, name: bytes) -> None:
        """Nothing but removed/ knows this file any more. Call with the store's lock held."""
        with self._entries:
            self._emptied.discard(inode)
            self._waiting[inode] = name
        self._wake.set()

    def empty(self, inode: int, name: bytes) -> None:
        """Free the pages of a file in removed/ that nobody can use and the kernel knows. With the store's lock held."""
        with self._entries:
            self._emptied.add(inode)
            self._waiting[inode] = name
        self._wake.set()

    @property
    def waiting_bytes(self) -> int:
        """What will be free soon, of the files whose turn is next."""
        return sum(self._books.questions.resident_bytes_of(inode) for inode, _ in self._first(PIECE_FILES))

    def free_some(self) -> bool:
        """Free one piece; False when there is none, or no descriptor to open the next file with.

        Where another thread is at a piece, it is that one which is waited for.
        """
        if not self._turn.acquire(blocking=False):
            with self._turn:
                return True
        try:
            if not self._free_some():
                return False
            self.pieces += 1
            return True
        finally:
            self._turn.release()

    def _free_some(self) -> bool:
        if self._current is None and self._end_small():
            return True
        try:
            dying = self._current or self._next()
        except OSError as error:
            if error.errno not in SCARCE:
                raise
            return False
        if dying is not None:
            self._free_piece(dying)
        return dying is not None

    def freed_since(self, pieces: int) -> bool:
        """Free one piece; whether any has gone since there were so many `pieces`, whoever freed it.

        The last one may go between a request that finds no space and a look at what waits.
        """
        return self.free_some() or self.pieces != pieces

    def with_space(self, act: Callable[[], Outcome]) -> Outcome:
        """Do `act`, and again when it finds the pool full while files wait to be freed. Not for the request pump."""
        while True:
            before = self.pieces
            try:
                return act()
            except OSError as error:
                if error.errno not in (ENOSPC, EDQUOT) or not self.freed_since(before):
                    raise
            while self.free_some():
                pass

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.wait(_RETRY_SECONDS if self._waiting else None)
                self._wake.clear()
                while not self._closed and self.free_some():
                    time.sleep(_PAUSE_SECONDS)  # whoever waits for a lock gets it
        except BaseException as error:
            self._on_error(error)

    def _end_small(self) -> int:
        """Free small files among those whose turn is next; how many."""
        small = [entry for entry in self._first(PIECE_FILES) if not self.takes(entry[0])]
        for inode, name in small:
            self._end(inode, name)
        return len(small)

    def _next(self) -> _Dying | None:
        while entries := self._first(1):
            ((inode, name),) = entries
            try:
                fd = self._store.tmpfs.open_removed(inode, name)
            except FileNotFoundError:  # a daemon was killed when it had removed the file
                self._end(inode, name)
                continue
            self._current = _Dying(inode, name, fd, self._books.questions.chunks_of(inode, 0, LAST_PAGE))
            return self._current
        return None

    def _free_piece(self, dying: _Dying) -> None:
        freed = 0
        for _ in range(_PIECE_CHUNKS):
            if not dying.chunks or freed >= PIECE_PAGES:
                break
            freed += self._allocation.free_chunk(dying.inode, dying.fd, dying.chunks[-1])
            dying.chunks.pop()
        if self._faults is not None:
            self._faults.reached(REAP, Point.HALFWAY)
        if not dying.chunks:
            self._current = None
            try:
                self._end(dying.inode, dying.name)
            finally:
                os.close(dying.fd)

    def _end(self, inode: int, name: bytes) -> None:
        """The books first: a daemon that is killed after that finds the file in removed/."""
        with self._entries:
            if inode in self._emptied:
                self._emptied.discard(inode)
                del self._waiting[inode]
                return
        self._books.pages.drop(inode)
        self._store.tmpfs.remove_for_good(inode, name)
        with self._entries:
            del self._waiting[inode]

    def _first(self, files: int) -> list[tuple[int, bytes]]:
        """Those whose turn is next, (inode, name) each, at most so many."""
        with self._entries:
            return list(islice(self._waiting.items(), files))


def _raise(error: BaseException) -> None:
    raise error
