"""What the books do for themselves, now and then, so that they stay small and a touch does not count for ever."""

from collections.abc import Container

from sharedfs.accounting.core import Core, pause


class Tidying:
    def __init__(self, core: Core) -> None:
        self._core = core

    def age(self) -> None:
        """`Ledger.age`."""
        core = self._core
        with core.lock:
            core.ledger.age()
            core.by_range = {}, core.by_range[0]

    @property
    def is_due(self) -> bool:
        return self._core.ledger.untidy

    def tidy(self) -> None:
        """What the ledger has to do for itself, in pieces: `Ledger.tidy_some`. Not for the request pump."""
        while self.is_due:
            with self._core.lock:
                self._core.ledger.tidy_some()
            pause()

    def forget_makers(self, of_inodes: Container[int]) -> None:
        """Of files that are gone, and heirs of who is not among the makers `of_inodes`. O(files + tenants)."""
        with self._core.lock:
            self._core.makers.tidy()
            self._core.tenants.keep_heirs_of(of_inodes)
