"""Which uses of files change nothing in the books, as far as is known: the shortcut in C then need not ask them.

Pure. Most uses of a file are like the one before. To find out that they change nothing costs as much as some of them,
and any change of the books undoes it, so it is done when that has paid for a while.
"""

from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import TenantId

_UNSETTLED = -1
_USES_TO_SETTLE = 8
_MOST_FILES = 4096  # of a tenant


class SettledUses:
    """Of one ledger. Call with the books' lock held."""

    def __init__(self, ledger: Ledger, page_bytes: int) -> None:
        self._ledger = ledger
        self._page_bytes = page_bytes
        self._without_change = 0
        self.bytes: dict[TenantId, dict[int, int]] = {}
        """Tenant -> file -> bytes, while the ledger's sequence is `at`: no read of the file by the tenant changes the
        books, nor does a write below so many bytes. _UNSETTLED: it may. For sharedfs/ops/fastpath.c."""
        self.at = -1

    def changed(self) -> None:
        """A use has changed the books."""
        self._without_change = 0

    def forget(self) -> None:
        """Ask the books of every use again."""
        self.bytes.clear()
        self.at = -1
        self._without_change = 0

    def unchanged(self, inode: int, tenant: TenantId) -> None:
        """`tenant` used a file, and the books are as before. O(classes of the file), at most once a change of them."""
        self._without_change += 1
        if self._without_change < _USES_TO_SETTLE:
            return
        if self.at != self._ledger.sequence:
            self.bytes.clear()
            self.at = self._ledger.sequence
        files = self.bytes.setdefault(tenant, {})
        if inode not in files:
            if len(files) >= _MOST_FILES:
                files.clear()
            pages = self._ledger.settled_pages(inode, tenant)
            files[inode] = _UNSETTLED if pages is None else pages * self._page_bytes
