"""Processes of a tenant that hang in execve(2): see `hung.py`."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.tenants import PATIENCE, Tenant

_SCRIPT = Path(__file__).with_name("hung.py")


@contextmanager
def hanging(
    tenant: Tenant, count: int, file: Path | None = None, seen: Callable[[], None] | None = None
) -> Iterator[list[int]]:
    """The ids of `count` processes that hang. Each has mapped `file` before, and hung when `seen` had returned."""
    with tempfile.TemporaryDirectory(prefix="sf-hung-", dir="/tmp") as directory:
        command = [sys.executable, "-S", "-E", str(_SCRIPT), directory, str(count), *([str(file)] if file else [])]
        process = subprocess.Popen(
            tenant.join(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if file is not None:
                assert process.stdout.readline() == "mapped\n"
                assert seen is not None
                seen()
                process.stdin.write("\n")
                process.stdin.flush()
            ids = [int(word) for word in process.stdout.readline().split()]
            assert len(ids) == count
            yield ids
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(10 * PATIENCE)
            except subprocess.TimeoutExpired:  # it is not ready
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
