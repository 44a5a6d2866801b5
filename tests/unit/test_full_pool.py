"""The log says what fills a pool, once a minute at most."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sharedfs.pages.full_pool import PAUSE_SECONDS, FullPool

MIB = 1 << 20


def test_a_full_pool_is_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    tmpfs = SimpleNamespace(used_bytes=lambda: 63 * MIB, room=SimpleNamespace(bound=SimpleNamespace(bytes=64 * MIB)))
    store = SimpleNamespace(tmpfs=tmpfs, removed={7: b"a", 8: b"b"})
    books = SimpleNamespace(questions=SimpleNamespace(resident_bytes_of=lambda inode: inode * MIB))
    now = [100.0]
    pool = FullPool(*cast(Any, (store, books, SimpleNamespace(waiting_bytes=MIB))), monotonic=lambda: now[0])
    for _ in range(3):
        pool.tell()
    assert len(caplog.records) == 1
    assert "63.0M of 64.0M are in use" in caplog.text
    assert "deleted files that are still used: 2, with 15.0M; about to be freed: 1.00M" in caplog.text
    store.removed = dict.fromkeys(range(2000), b"many")
    now[0] += PAUSE_SECONDS
    pool.tell()
    assert len(caplog.records) == 2
    assert "2000, with at least" in caplog.text
