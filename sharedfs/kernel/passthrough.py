"""FUSE passthrough (Linux >= 6.9): mmap of an open file goes to its backing file, without asking us.

All passthrough opens of one inode must use the same backing id at a time; the kernel drops its use of one before it
sends the RELEASE. So an id lives from the first open of an inode to its last release.
"""

import fcntl
import struct

_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map {s32 fd; u32 flags; u64 padding})
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, u32)


class BackingFiles:
    """The backing ids of one FUSE connection, by inode number. `device_fd` is its /dev/fuse."""

    def __init__(self, device_fd: int) -> None:
        self._device_fd = device_fd
        self._ids: dict[int, int] = {}

    def __contains__(self, inode: int) -> bool:
        return inode in self._ids

    def register(self, inode: int, backing_fd: int) -> None:
        """Make `backing_fd`'s file the one behind `inode`; the caller may close it afterwards."""
        backing_map = bytearray(struct.pack("<iIQ", backing_fd, 0, 0))  # ioctl returns the id only for a mutable one
        self._ids[inode] = fcntl.ioctl(self._device_fd, _BACKING_OPEN, backing_map)

    def id_of(self, inode: int) -> int | None:
        return self._ids.get(inode)

    def release(self, inode: int) -> None:
        backing_id = self._ids.pop(inode, None)
        if backing_id is not None:
            fcntl.ioctl(self._device_fd, _BACKING_CLOSE, struct.pack("<I", backing_id))
