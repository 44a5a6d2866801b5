"""Handles through which a tenant may read all of a file without a request: while it has one it uses all its pages."""

from collections.abc import Callable

from sharedfs.accounting.core import Core
from sharedfs.ledger.open_readers import Reader
from sharedfs.ledger.page_ranges import LAST_PAGE, NO_RUNS, Runs, as_runs
from sharedfs.ledger.tenant import NOBODY, TenantId

_ALL_PAGES = as_runs([(0, LAST_PAGE)])


class FastReaders:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._readers = core.readers
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
            if not self._readers.add((inode, tenant), -1, request):
                if core.ledger.is_large(inode):
                    self._closed[inode, tenant] = None
                else:
                    core.set_mapped(inode, tenant, _ALL_PAGES)  # also what became resident since the last scan
                    core.set_mapped(inode, tenant, NO_RUNS)
            core.tidy_log()

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

    def _read_by(self, reader: Reader, pages: Runs, holds: Callable[[Reader], bool]) -> None:
        """`Core.set_mapped` in pieces, for as long as what is said of a reader holds."""
        inode, tenant = reader
        core = self._core
        with core.lock:
            if not holds(reader) or core.ledger.is_mapped(inode, tenant, pages):
                return
            core.record_mapped(inode, tenant, pages)
            pieces = core.ledger.mapping(inode, tenant, pages)
        core.in_turns(pieces, lambda: holds(reader) and tenant in core.tenants)
