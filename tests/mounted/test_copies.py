"""The daemon makes each copy_file_range(2), however many ask for the first one at once.

A kernel that knows COPY_FILE_RANGE_64 asks for it first. Where that is not served, and several ask at the same time, it
takes the second refusal for one of COPY_FILE_RANGE (Linux 6.18), and never asks again: it splices, through pages of its
own page cache that it charges to the tenant, or fails with EINVAL where the source changes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from tests.support.mount import mounted_pool
from tests.support.posix import opened

CALLERS, BYTES = 16, 100_000


def test_the_daemon_makes_each_of_many_copies_at_once(run_dir: Path) -> None:
    data = os.urandom(BYTES)
    with mounted_pool(run_dir / "mnt", "copies", "--size", "64M") as pool, ThreadPoolExecutor(CALLERS) as threads:
        (pool.path / "source").write_bytes(data)
        together = Barrier(CALLERS)

        def copy(caller: int) -> int:
            path = pool.path / f"target-{caller}"
            with opened(pool.path / "source", os.O_RDONLY) as source, opened(path, os.O_RDWR | os.O_CREAT) as target:
                together.wait(10)
                return os.copy_file_range(source, target, BYTES)

        assert list(threads.map(copy, range(CALLERS))) == [BYTES] * CALLERS
        assert list(threads.map(copy, range(CALLERS))) == [BYTES] * CALLERS
        answered = pool.status().requests
        assert (answered["copy_file_range"], answered["read"]) == (2 * CALLERS, 0)
        assert {(pool.path / f"target-{caller}").read_bytes() for caller in range(CALLERS)} == {data}
