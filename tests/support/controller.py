"""A real controller for tests: the service as a process of its own, asked with the real command."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sharedfs.common import paths
from tests.support.tenants import PATIENCE, wait_until

Answer = dict[str, Any]


def run_sharedctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controller.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)


def sharedctl(*arguments: str) -> Answer:
    """The JSON answer of a query, which has to succeed."""
    done = run_sharedctl(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: Answer = json.loads(done.stdout)
    return answer


def bills() -> Answer:
    """The bills, which sum up to the byte (I1)."""
    told = sharedctl("bills")
    shares = sum(tenant["share_bytes"] for tenant in told["tenants"])
    assert (
        shares + told["unclaimed_bytes"] == told["pool_resident_bytes"] + told["detached_bytes"] + told["inode_bytes"]
    ), told
    return told


def bill_of(tenant: str, told: Answer) -> Answer:
    (found,) = (bill for bill in told["tenants"] if bill["tenant"] == tenant)
    return found


@contextmanager
def running_controller(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A controller that serves; stopped with SIGTERM at the end, which puts all limits back."""
    process = subprocess.Popen([sys.executable, "-m", "controller.cli.main", "run", *options], stderr=subprocess.PIPE)
    try:
        wait_until(
            lambda: paths.controller_socket().exists() and run_sharedctl("bills").returncode == 0,
            "the controller answers",
            60,
        )
        yield process
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode in (0, -9), log.decode()
