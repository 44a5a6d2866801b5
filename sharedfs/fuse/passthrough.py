"""FUSE passthrough (Linux >= 6.9): mmap of an open file goes to its backing file, without asking us.

All passthrough opens of one inode must use the same backing id at a time; the kernel drops its use of one before it
sends the RELEASE. So an id lives from the first open of an inode to its last release.
"""

import fcntl
import struct
from errno import ENOENT

_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map {s32 fd; u32 flags; u64 padding})
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, u32)


class BackingFiles:
    """The backing ids of one FUSE connection, by its /dev/fuse. They live in the connection, and outlive us.

    The kernel numbers them one by one, from 1 on, and gives no number twice.
    """

    def __init__(self, device_fd: int) -> None:
        self._device_fd = device_fd

    def register(self, backing_fd: int) -> int:
        """A new id for `backing_fd`'s file; the caller may close the descriptor afterwards."""
        backing_map = bytearray(struct.pack("<iIQ", backing_fd, 0, 0))  # ioctl returns the id only for a mutable one
        backing_id: int = fcntl.ioctl(self._device_fd, _BACKING_OPEN, backing_map)
        return backing_id

    def close(self, backing_id: int) -> None:
        """Give an id back; one that is not in use is no error."""
        try:
            fcntl.ioctl(self._device_fd, _BACKING_CLOSE, struct.pack("<I", backing_id))
        except OSError as error:
            if error.errno != ENOENT:
                raise
