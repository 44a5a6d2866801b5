"""The private tmpfs that holds a pool's tree. It is mounted nowhere: no path of the host leads into it, and it is gone
with the last descriptor into it.

Layout:   tree/ what tenants see       removed/ what has no name any more and somebody still uses, by inode number
and last name: what is in removed/ is what the kernel has to forget before it is gone.
"""

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from sharedfs.fuse.protocol import ROOT_NODE
from sharedfs.linux import syscalls
from sharedfs.linux.mount_flags import MOUNT_ATTR_ATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSUID
from sharedfs.storage import inode_cost
from sharedfs.storage.inode_cost import HIDDEN_INODES
from sharedfs.storage.room import Room

TREE, REMOVED = b"tree", b"removed"


def make_tmpfs(
    size_bytes: int,
    inodes: int | None = None,
    root_mode: int = 0o1777,
    root_owner: tuple[int, int] = (0, 0),
    atime_attributes: int = 0,
    huge: str | None = None,
) -> tuple[int, int]:
    """A new tmpfs with its two directories: descriptors of the mount and of its root, the caller's to close.

    When the first one (O_PATH) is closed the mount is dissolved: all goes on but that its attributes are fixed.
    `inodes` bounds the number of files (0: no bound, None: as tmpfs), `atime_attributes` are MOUNT_ATTR_ bits, `huge`
    is tmpfs's option. Set-id bits and devices never count here: what executes and opens them is the kernel, by the
    mount of tenants.
    """
    options = {"source": "sharedfs", "mode": "0700"} | _bounds(size_bytes, inodes)
    if huge is not None:
        options["huge"] = huge
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | atime_attributes
    fsmount_fd = syscalls.detached_mount("tmpfs", options, ["inode64"], attributes)
    # fsmount's descriptor is O_PATH; open_by_handle_at, and a service manager that keeps it, want a real one
    root_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fsmount_fd)
    for name, mode in ((TREE, root_mode), (REMOVED, 0o700)):
        os.mkdir(name, dir_fd=root_fd)
        os.chmod(name, mode, dir_fd=root_fd)
    os.chown(TREE, *root_owner, dir_fd=root_fd)
    return fsmount_fd, root_fd


def make_state() -> int:
    """A descriptor of the root of another new tmpfs, for what must outlive the daemon: a full pool leaves it room."""
    mount_fd = syscalls.detached_mount("tmpfs", {"source": "sharedfs", "mode": "0700", "size": "0"})
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount_fd)
    finally:
        os.close(mount_fd)


class PrivateTmpfs:
    """The tmpfs by a descriptor of its root, which becomes ours, and its two directories."""

    def __init__(self, mount_fd: int, room: Room | None = None) -> None:
        """`room` is what the limits of memory leave it; without one none bounds it."""
        self.mount_fd = mount_fd
        self.room = Room(mount_fd, 0) if room is None else room
        self.removed_fd = os.open(REMOVED, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount_fd)
        self.tree_inode = os.stat(TREE, dir_fd=mount_fd).st_ino
        # Numbers of tmpfs's that a listing shows and that are FUSE's node 1: the tree's root, and what is above it.
        self.root_numbers = {self.tree_inode: ROOT_NODE, os.fstat(mount_fd).st_ino: ROOT_NODE}

    def close(self) -> None:
        self.room.close()
        for fd in (self.removed_fd, self.mount_fd):
            os.close(fd)

    def directory_number(self, names: Iterable[bytes]) -> int:
        """The inode number of the directory that `names` lead to from the tree's root; no symlink is followed.

        Holds one descriptor at a time, so the way may be of any length. Raises OSError when it leads nowhere.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(TREE, flags, dir_fd=self.mount_fd)
        try:
            for name in names:
                above, fd = fd, os.open(name, flags, dir_fd=fd)
                os.close(above)
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    @staticmethod
    def removed_entry(inode: int, name: bytes) -> bytes:
        """What an inode is called in removed/: its number, and as much of the name that it had as there is room for."""
        return (b"%d " % inode + name)[: syscalls.LONGEST_NAME_BYTES]

    def removed_names(self) -> dict[int, bytes]:
        """The last names of the inodes in removed/."""
        names = {}
        for entry in os.listdir(self.removed_fd):
            number, _, name = os.fsencode(entry).partition(b" ")
            names[int(number)] = name
        return names

    def open_removed(self, inode: int, name: bytes) -> int:
        """A descriptor of a regular file in removed/, to write to, the caller's to close."""
        entry, flags = self.removed_entry(inode, name), os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(entry, os.O_RDWR | flags, dir_fd=self.removed_fd)
        except PermissionError:
            self._clear_inode_flags(entry)
        return os.open(entry, os.O_RDWR | flags, dir_fd=self.removed_fd)

    def _clear_inode_flags(self, entry: bytes) -> None:
        """Of chattr's +i or +a, set by who had the file open: without a name they keep nothing."""
        fd = os.open(entry, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self.removed_fd)
        try:
            fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, bytes(4))
        finally:
            os.close(fd)

    def remove_for_good(self, inode: int, name: bytes) -> None:
        """Remove from removed/; what is not there is no error."""
        entry = self.removed_entry(inode, name)
        try:
            is_directory = stat.S_ISDIR(os.stat(entry, dir_fd=self.removed_fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return
        remove = os.rmdir if is_directory else os.unlink
        try:
            remove(entry, dir_fd=self.removed_fd)
        except PermissionError:
            self._clear_inode_flags(entry)
            remove(entry, dir_fd=self.removed_fd)

    def used_bytes(self) -> int:
        pool = os.fstatvfs(self.mount_fd)
        return (pool.f_blocks - pool.f_bfree) * pool.f_frsize

    def inodes(self) -> int | None:
        """How many there are that tenants see; None where nothing bounds and counts them (`nr_inodes=0`)."""
        pool = os.fstatvfs(self.mount_fd)
        return inode_cost.shown(pool) if pool.f_files else None

    def free_bytes(self) -> int:
        pool = os.fstatvfs(self.mount_fd)
        return pool.f_bavail * pool.f_frsize

    def grow(self, more_bytes: int) -> None:
        """Have room for so much more than before."""
        pool = os.fstatvfs(self.mount_fd)
        syscalls.reconfigure_tmpfs(self.mount_fd, {"size": str(pool.f_blocks * pool.f_frsize + more_bytes)})

    @contextmanager
    def larger(self, more_bytes: int) -> Iterator[None]:
        """For the moment of the block it may hold so much more. With the store's lock held."""
        pool = os.fstatvfs(self.mount_fd)
        try:
            with self.room.lent(more_bytes):
                self.grow(more_bytes)
                yield
        finally:
            # EINVAL: a tenant filled a hole meanwhile. The next look at the limits puts it right.
            with suppress(OSError):
                syscalls.reconfigure_tmpfs(self.mount_fd, {"size": str(pool.f_blocks * pool.f_frsize)})
            self.room.look()

    def reconfigure(self, size_bytes: int, inodes: int | None, atime_attributes: int) -> None:
        """Change the bounds and who moves access times. EINVAL when more is in use than would be allowed."""
        syscalls.reconfigure_tmpfs(self.mount_fd, _bounds(size_bytes, inodes))
        syscalls.set_mount_attributes(self.mount_fd, MOUNT_ATTR_ATIME | MOUNT_ATTR_NODIRATIME, atime_attributes)


def _bounds(size_bytes: int, inodes: int | None) -> dict[str, str]:
    bounds = {"size": str(size_bytes)}
    if inodes is not None:
        bounds["nr_inodes"] = str(inodes + HIDDEN_INODES if inodes else 0)
    return bounds
