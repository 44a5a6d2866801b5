"""Which files of a filesystem another process has, and whether a filesystem still lives. Neither asks the filesystem.

Paths do not tell: the links in /proc of a file on a mount that was taken away (MNT_DETACH) begin at that mount's root.
A device number is the filesystem's, wherever it is mounted, for as long as it lives.
"""

import ctypes
import os
import re
import stat
from contextlib import suppress
from struct import Struct

from sharedfs.linux.procfs import living_task
from sharedfs.linux.syscalls import STATX_BYTES

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_DEVICE, _DEVICE_OFFSET = Struct("=II"), 136  # stx_dev_major and stx_dev_minor in struct statx, linux/stat.h
_MODE_AND_INODE, _MODE_OFFSET = Struct("=HxxQ"), 28
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)  # of /proc/PID/fdinfo, octal
_BDI = "/sys/class/bdi"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]


def device_of(link: str) -> tuple[int, int] | None:
    """The device (major, minor) of what a link in /proc leads to; None when it is gone.

    No attribute is wanted, so FUSE fills in the device alone and asks no daemon (fuse_getattr() in fs/fuse/dir.c).
    """
    found = ctypes.create_string_buffer(STATX_BYTES)
    return _device_in(found) if _finds(_AT_FDCWD, link, found) else None


def opened_for_reading(process_id: int, device: tuple[int, int]) -> frozenset[int]:
    """The regular files on a device, by inode, that a process has open to read them and no more; none when it is gone.

    What the kernel remembers of an inode says so (AT_STATX_DONT_SYNC). A thread with descriptors of its own
    (CLONE_FILES unshared) is not looked at, nor what is in no process: sent and not received, or io_uring's.
    """
    task = f"/proc/{process_id}"
    opened = _opened_by(task, device)
    if opened is None:  # a kernel thread, or one whose main thread has ended
        living = living_task(process_id)
        opened = None if living in (None, task) else _opened_by(living, device)
    return frozenset(opened or ())


def _opened_by(task: str, device: tuple[int, int]) -> set[int] | None:
    """None of a task without descriptors."""
    opened = set[int]()
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        place = os.open(f"{task}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names, found = os.listdir(place), ctypes.create_string_buffer(STATX_BYTES)
            for name in names:
                if _finds(place, name, found) and _device_in(found) == device:
                    mode, inode = _MODE_AND_INODE.unpack_from(found, _MODE_OFFSET)
                    if stat.S_ISREG(mode) and _reads_only(f"{task}/fdinfo/{name}"):
                        opened.add(inode)
        finally:
            os.close(place)
        return opened if names else None
    return None


def _reads_only(fdinfo: str) -> bool:
    try:
        with open(fdinfo, "rb", buffering=0) as file:
            flags = _FLAGS.search(file.readall())
    except (FileNotFoundError, PermissionError):  # it was closed since
        return False
    return flags is not None and int(flags[1], 8) & (os.O_ACCMODE | os.O_PATH) == os.O_RDONLY


def _finds(place: int, link: str, found: ctypes.Array[ctypes.c_char]) -> bool:
    return bool(_libc.statx(place, os.fsencode(link), _AT_STATX_DONT_SYNC, 0, found) == 0)


def _device_in(found: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    major, minor = _DEVICE.unpack_from(found, _DEVICE_OFFSET)
    return major, minor


def filesystem_lives(device: tuple[int, int]) -> bool | None:
    """Whether a FUSE filesystem has not ended, mounted or not; None where there is no sysfs to tell.

    The kernel lists it there (super_setup_bdi_name()) until its last user has gone.
    """
    if not os.path.isdir(_BDI):
        return None
    return os.path.lexists(f"{_BDI}/{device[0]}:{device[1]}")
