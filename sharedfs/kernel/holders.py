"""Which processes can reach a file of the mount without asking us: those that map it or have it open.

Reads /proc only. An open file that is under way between two processes (SCM_RIGHTS) is in neither, and not found.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from errno import EACCES, EPERM, ESRCH

from sharedfs.kernel import proc

_IO_URING = "anon_inode:[io_uring]"
_AIO = b"/[aio]"


def holders_of(inode: int, device: tuple[int, int], processes: Iterable[int]) -> set[int]:
    """Those of `processes` that map or have open the file with this number on `device`. O(their mappings and files)."""
    return {process for process in processes if _maps(process, inode, device) or _has_open(process, inode, device)}


def does_asynchronous_io(process: int) -> bool:
    """Whether the kernel may write into the process's memory while the process itself stands still."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{process}/fd"):
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/{process}/fd/{name}") == _IO_URING:
                    return True
        with open(f"/proc/{process}/maps", "rb", buffering=0) as maps:
            return _AIO in maps.readall()
    return False


def _maps(process: int, inode: int, device: tuple[int, int]) -> bool:
    return any(mapping.inode == inode for mapping in proc.mappings_of_device(process, device))


def _has_open(process: int, inode: int, device: tuple[int, int]) -> bool:
    wanted = b"ino:\t%d\n" % inode
    try:
        for name in os.listdir(f"/proc/{process}/fdinfo"):
            with suppress(FileNotFoundError), open(f"/proc/{process}/fdinfo/{name}", "rb", buffering=0) as info:
                text = info.readall()
                if wanted in text and proc.mount_device(process, proc.mount_id(text)) == device:
                    return True
    except OSError as error:
        if error.errno not in (EACCES, EPERM, ESRCH) and not isinstance(error, FileNotFoundError):
            raise
    return False
