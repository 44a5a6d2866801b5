"""Recording for `sharedctl record`: a tape (`recorder.py`) is put in, told what is there, read off and taken out."""

from sharedfs.accounting.core import Core
from sharedfs.accounting.recorder import Taken, Tape
from sharedfs.api.types import NOBODY_PATH, Event
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import TenantId


class Recording:
    def __init__(self, core: Core) -> None:
        self._core = core

    def begin(self) -> bool:
        """Record from now on, beginning with what is there; False when somebody does already. O(pages), once."""
        core = self._core
        with core.lock:
            if core.tape is not None and not core.tape.full:
                return False
            core.tape = Tape(self._path_of)
            # What is known to change nothing is not asked again: now it has to be.
            core.settled.forget()
            for inode in core.ledger.files():
                _tell(core.tape, core.ledger, inode)
            return True

    def take(self) -> Taken | None:
        """What there is since the last call; None when nobody records."""
        core = self._core
        with core.lock:
            if core.tape is None:
                return None
            taken = core.tape.take()
            if taken.full:
                core.tape = None
            return taken

    def end(self) -> None:
        with self._core.lock:
            self._core.tape = None

    def _path_of(self, tenant: TenantId) -> str:
        known = self._core.tenants.get(tenant)
        return NOBODY_PATH if known is None else known.path


def tell_anew(tape: Tape, ledger: Ledger, inode: int) -> None:
    """A trace has no word for a file that is handed over: it is freed, and made by its new owner.

    Call with the lock held.
    """
    for held, _ in ledger.file_holdings(inode):
        for tenant in sorted(held.mapped):
            tape.mapped(inode, tenant, [])
    tape.free(inode, 0, None)
    _tell(tape, ledger, inode)


def _tell(tape: Tape, ledger: Ledger, inode: int) -> None:
    """All that the books say of a file. O(pages)."""
    runs = ledger.class_runs(inode)
    for first, last, held in runs:
        tape.use(Event.ALLOCATE, held.owner, inode, first, last)
        for tenant in sorted(held.recent | held.older):
            tape.use(Event.TOUCH, tenant, inode, first, last)
    mappers = {tenant for *_, held in runs for tenant in held.mapped}
    for tenant in sorted(mappers):
        tape.mapped(inode, tenant, [(first, last) for first, last, held in runs if tenant in held.mapped])
