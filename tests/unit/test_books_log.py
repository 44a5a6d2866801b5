"""The log of the tenants is written anew while other threads keep books: nothing that they add is lost."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from sharedfs.accounting import core
from sharedfs.accounting.books import Books
from sharedfs.ledger.storage import Log, Record, rewrite
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import find_memory_hierarchy

PAGE = 4096
_TIME_TO_COME_SECONDS = 0.2


def test_a_tenant_that_comes_while_an_exit_rewrites_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread has time enough to come in between, and waits for the lock."""
    state_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        books = Books(find_memory_hierarchy(), PAGE, TenantRules("leaf"), state_fd)
        leaving = books.tenants.intern("/leaving", 1)
        newcomer = threading.Thread(target=books.tenants.intern, args=("/newcomer", 2))

        def rewrite_meanwhile(log: Log, records: Iterable[Record]) -> None:
            if newcomer.ident is None:
                newcomer.start()
                newcomer.join(_TIME_TO_COME_SECONDS)
            rewrite(log, records)

        monkeypatch.setattr(core, "rewrite", rewrite_meanwhile)
        monkeypatch.setattr("sharedfs.accounting.persistence._OVERGROWN_BYTES", 0)
        monkeypatch.setattr("sharedfs.accounting.persistence._OVERGROWN_TIMES", 0)
        books.tenants.exit([leaving])
        newcomer.join()
        books.close()
        successor = Books(find_memory_hierarchy(), PAGE, TenantRules("leaf"), state_fd)
        assert [tenant.path for tenant in successor.tenants.live()] == ["/newcomer"]
        successor.close()
    finally:
        os.close(state_fd)
