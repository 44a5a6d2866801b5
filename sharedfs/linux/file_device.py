"""Which filesystem a file of another process is on, and whether a filesystem still lives. Neither asks the filesystem.

Paths do not tell: the links in /proc of a file on a mount that was taken away (MNT_DETACH) begin at that mount's root.
A device number is the filesystem's, wherever it is mounted, for as long as it lives.
"""

import ctypes
import os
from struct import Struct

from sharedfs.linux.syscalls import STATX_BYTES

_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_DEVICE, _DEVICE_OFFSET = Struct("=II"), 136  # stx_dev_major and stx_dev_minor in struct statx, linux/stat.h
_BDI = "/sys/class/bdi"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]


def device_of(link: str) -> tuple[int, int] | None:
    """The device (major, minor) of what a link in /proc leads to; None when it is gone.

    No attribute is wanted, so FUSE fills in the device alone and asks no daemon (fuse_getattr() in fs/fuse/dir.c).
    """
    found = ctypes.create_string_buffer(STATX_BYTES)
    if _libc.statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, 0, found) < 0:
        return None
    major, minor = _DEVICE.unpack_from(found, _DEVICE_OFFSET)
    return major, minor


def filesystem_lives(device: tuple[int, int]) -> bool | None:
    """Whether a FUSE filesystem has not ended, mounted or not; None where there is no sysfs to tell.

    The kernel lists it there (super_setup_bdi_name()) until its last user has gone.
    """
    if not os.path.isdir(_BDI):
        return None
    return os.path.lexists(f"{_BDI}/{device[0]}:{device[1]}")
