"""The pool's books: the ledger and the tenants under one lock, for the threads that keep them. The one way in.

The data path (its own thread), the namespace, the mapping scan and the feed (trio's thread) all write or read here. The
books are a few parts with one idea each, which share a `Core` and its lock.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sharedfs.accounting.admission import Admission
from sharedfs.accounting.changes import Changes
from sharedfs.accounting.core import Core
from sharedfs.accounting.fast_readers import FastReaders
from sharedfs.accounting.mappings import MappedPages
from sharedfs.accounting.pages import Pages
from sharedfs.accounting.persistence import BooksState
from sharedfs.accounting.questions import Questions
from sharedfs.accounting.recording import Recording
from sharedfs.accounting.swapped import SwappedPages
from sharedfs.accounting.tenants import Tenants
from sharedfs.accounting.tidying import Tidying
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.no_op_cache import SettledUses
from sharedfs.ledger.storage import LedgerStorage, MemoryLog
from sharedfs.ledger.tenant import TenantId
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import MemoryHierarchy


class ForShortcut(NamedTuple):
    """What the shortcut in C (`ops/fastpath.c`) holds of the books. It reads all but the methods for each request."""

    ledger: Ledger
    """Of which `sequence`."""
    settled: SettledUses
    """Of which `at`: while that is the ledger's sequence, `settled_bytes` says which uses change nothing."""
    settled_bytes: dict[TenantId, dict[int, int]]
    touch: Callable[[int, int, int, TenantId], None]
    charge: Callable[[int, int, int, TenantId], None]
    left: dict[TenantId, int]
    above: dict[TenantId, tuple[str, ...]]
    left_above: dict[str, int]


class Books:
    """What the pool holds and who uses it. `page_bytes` is the unit of accounting.

    `state_fd` is a directory that outlives this process: the books continue those that they find in it, and are kept
    there. None: they live and die with this object. Raises HostFault when the state cannot be read or kept.
    """

    def __init__(
        self, hierarchy: MemoryHierarchy, page_bytes: int, rules: TenantRules, state_fd: int | None = None
    ) -> None:
        self.page_bytes = page_bytes
        self._state = None if state_fd is None else BooksState(state_fd)
        if self._state is None:
            core = Core(page_bytes, LedgerStorage(), MemoryLog())
        else:
            core = Core(page_bytes, self._state.ledger, self._state.tenants)
        self._core = core
        self.tenants = Tenants(core, hierarchy, rules)
        self.admission = Admission(core)
        self.changes = Changes(core)
        self.swapped = SwappedPages(core)
        self.detached = core.detached
        self.pages = Pages(core, self.changes, self.swapped)
        self.mappings = MappedPages(core, self.changes, self.pages)
        self.questions = Questions(core)
        self.readers = FastReaders(core)
        self.recording = Recording(core)
        self.tidying = Tidying(core)

    def close(self) -> None:
        """Hold no descriptor of the state any more."""
        if self._state is not None:
            self._state.close()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """While nothing changes in the books; ask them nothing meanwhile."""
        with self._core.lock:
            yield

    def write_whole(self) -> None:
        """Leave the state as the versions before read it (`Ledger.write_whole`): the last call, `at_rest`."""
        self._core.ledger.write_whole()
        self._core.write_log(with_heirs=False)

    def check(self) -> None:
        """Prove the books from the pages up; raise BrokenInvariant where they contradict themselves. O(pages)."""
        with self._core.lock:
            self._core.ledger.check()

    def for_shortcut(self) -> ForShortcut:
        core = self._core
        return ForShortcut(
            ledger=core.ledger,
            settled=core.settled,
            settled_bytes=core.settled.bytes,
            touch=self.pages.touch,
            charge=self.pages.charge,
            left=core.allowances.left,
            above=core.allowances.above.of,
            left_above=core.allowances.above.left,
        )
