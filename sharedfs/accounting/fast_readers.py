"""Handles through which a tenant may read all of a file without a request: while it has one it uses all its pages."""

from collections.abc import Callable, Iterator, Set

from sharedfs.accounting.core import Core
from sharedfs.ledger.holdings import used_bytes
from sharedfs.ledger.open_readers import Reader
from sharedfs.ledger.page_ranges import LAST_PAGE, NO_RUNS, Runs, as_runs
from sharedfs.ledger.tenant import NOBODY, TenantId

_ALL_PAGES = as_runs([(0, LAST_PAGE)])


class FastReaders:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._readers = core.readers
        self._own_bytes: dict[Reader, int] = {}  # what there was of a file when it was opened
        self._closed: dict[Reader, None] = {}  # large files that were read so until they were closed

    def open(self, inode: int, tenant: TenantId, request: int = 0) -> TenantId:
        """`tenant` has one more handle through which it may read all of a file unseen: it uses all its pages.

        Returns whom to name when the handle is closed: NOBODY for a tenant that has exited. `request` is the number of
        the request that asks for it: asked again after the daemon's death, it counts once.
        """
        core = self._core
        with core.lock:
            tenant = core.tenants.if_live(tenant)
            if tenant != NOBODY:
                self._readers.add((inode, tenant), 1, request)
                self._own_bytes[inode, tenant] = core.ledger.resident_pages_of(inode) * core.page_bytes
                core.record_mapped(inode, tenant, _ALL_PAGES)
                next(core.ledger.mapping(inode, tenant, _ALL_PAGES), None)  # the rest of a large file: the next scan
                core.tidy_log()
            return tenant

    def close(self, inode: int, tenant: TenantId, request: int = 0) -> None:
        """One handle less. The last one ends the use, which counts as a touch; the next scan finds what is mapped."""
        core = self._core
        with core.lock:
            if tenant not in core.tenants:
                return  # it has exited
            if not self._readers.add((inode, tenant), -1, request) and (inode, tenant) not in self._readers:
                if core.ledger.is_large(inode):
                    self._closed[inode, tenant] = None
                else:
                    before = used_bytes(core.ledger.file_holdings(inode), tenant)
                    core.set_mapped(inode, tenant, _ALL_PAGES)  # also what became resident since the last scan
                    self._note_added((inode, tenant), before, used_bytes(core.ledger.file_holdings(inode), tenant))
                    core.set_mapped(inode, tenant, NO_RUNS)
            core.tidy_log()

    def seen(self) -> frozenset[Reader]:
        """Who uses a file by a handle that another tenant opened, as of the last scan."""
        return self._readers.seen

    def see(self, opened: Set[Reader]) -> None:
        """A scan found these with a file open: whoever opened it, they may read all of it, and use all its pages.

        Who was found so before, and is no more, has closed it. `refresh` is to follow.
        """
        core = self._core
        with core.lock:
            before, now = self._readers.seen, frozenset(self._others(opened))
            self._readers.seen = now
            for reader in now - before:
                self._own_bytes.setdefault(reader, core.ledger.resident_pages_of(reader[0]) * core.page_bytes)
            self._closed.update(dict.fromkeys(before - now))

    def _others(self, opened: Set[Reader]) -> Iterator[Reader]:
        """Those that live, and have no handle of their own on the file."""
        return (one for one in opened if one[1] in self._core.tenants and not self._readers.has_handle(one))

    def refresh(self) -> None:
        """Readers use what has become resident since they opened, too. O(readers) when nothing has.

        And large files that were closed are used no more. Not for the request pump: in pieces.
        """
        with self._core.lock:
            readers, closed = list(self._readers), list(self._closed)
        for reader in readers:
            self._read_by(reader, _ALL_PAGES, lambda reader: reader in self._readers)
        for reader in closed:
            for pages in (_ALL_PAGES, NO_RUNS):
                self._read_by(reader, pages, lambda reader: reader in self._closed and reader not in self._readers)
            self._closed.pop(reader, None)
        with self._core.lock:
            for reader in self._own_bytes.keys() - set(self._readers) - self._closed.keys():
                del self._own_bytes[reader]

    def _note_added(self, reader: Reader, before_bytes: int, after_bytes: int) -> None:
        """What it uses more than before, and more than it opened, others have added. With the lock held."""
        added_bytes = after_bytes - max(before_bytes, self._own_bytes.get(reader, 0))
        if added_bytes > 0:
            self._core.unasked.added[reader[1]] += added_bytes

    def _read_by(self, reader: Reader, pages: Runs, holds: Callable[[Reader], bool]) -> None:
        """`Core.set_mapped` in pieces, for as long as what is said of a reader holds."""
        inode, tenant = reader
        core = self._core
        with core.lock:
            if not holds(reader) or core.ledger.is_mapped(inode, tenant, pages):
                return
            core.record_mapped(inode, tenant, pages)
            before = used_bytes(core.ledger.file_holdings(inode), tenant)
            pieces = self._counted(reader, before, core.ledger.mapping(inode, tenant, pages))
        core.in_turns(pieces, lambda: holds(reader) and tenant in core.tenants)

    def _counted(self, reader: Reader, before_bytes: int, pieces: Iterator[int]) -> Iterator[None]:
        """`pieces`, each of which is counted with the lock that it is booked with: no reading has the one alone."""
        for gained_pages in pieces:
            gained_bytes = gained_pages * self._core.page_bytes
            self._note_added(reader, before_bytes, before_bytes + gained_bytes)
            before_bytes += gained_bytes
            yield
