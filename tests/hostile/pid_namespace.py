"""A process tree with process ids of its own, in which a test says which id comes next."""

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.posix import in_child, own_mount_namespace

_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)
LAST_PROCESS_ID = Path("/proc/sys/kernel/ns_last_pid")


def in_pid_namespace(action: Callable[[], Any]) -> Any:
    """What `action` returns; it runs as process 1, sees its own /proc, and all that it leaves behind ends with it."""

    def as_first() -> Any:
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
        return action()

    def apart() -> Any:
        own_mount_namespace()
        if _libc.unshare(_CLONE_NEWPID) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return in_child(as_first)

    return in_child(apart)


def next_process_id(process_id: int) -> None:
    """Where the kernel lets one say that (CONFIG_CHECKPOINT_RESTORE): `LAST_PROCESS_ID` is there."""
    LAST_PROCESS_ID.write_text(str(process_id - 1))
