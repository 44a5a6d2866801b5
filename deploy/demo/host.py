"""What the demonstration reads from the host: the kernel's version, cgroup files."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from sharedfs.common.errors import HostFault

PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.02
_NO_ZOMBIES_SINCE = (7, 1)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Poll until `condition` holds; seconds that took. Raises HostFault when it does not hold in time."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise HostFault(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


def kernel_release() -> str:
    return os.uname().release


def kernel_version(release: str) -> tuple[int, int]:
    """
    >>> kernel_version("6.1.0-18-amd64")
    (6, 1)
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise HostFault(f"{release!r} is no version of Linux that we can read")
    return int(found[1]), int(found[2])


def statistic(directory: Path, name: str) -> int:
    """One line of a cgroup's memory.stat, in bytes."""
    lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(lines[name])


def zombies_stay(release: str) -> bool:
    """Whether that Linux keeps a removed cgroup while pages are charged to it; 7.1 moves them to its parent.

    >>> zombies_stay("6.18.5"), zombies_stay("7.2.7")
    (True, False)
    """
    return kernel_version(release) < _NO_ZOMBIES_SINCE
