"""The inodes of a pool's tmpfs that the kernel has heard of: by number, reached by file handle.

An inode is known by its number (the FUSE node id; tmpfs with inode64 never gives one twice), so a million files need no
million descriptors. What the kernel forgot is dropped here, but for four bytes (see generations.py).
"""

import fcntl
import os
import stat
import threading
from errno import ENXIO, ESTALE

from sharedfs.descriptors import Descriptors, open_for_data
from sharedfs.generations import Generations
from sharedfs.kernel import syscalls
from sharedfs.kernel.fuse_wire import ROOT_NODE
from sharedfs.tmpfs import TREE, PrivateTmpfs

_PATH_DESCRIPTORS = 2048


class Node:
    """An inode of the store that the kernel has heard of, or that has pages."""

    __slots__ = ("handle", "inode", "lookups", "may_be_mapped", "opens", "removed_name", "set_id")

    def __init__(self, inode: int, handle: bytes) -> None:
        self.inode = inode
        self.handle = handle
        self.lookups = 0  # how often the kernel was told of it, less its FORGETs
        self.opens = 0
        self.may_be_mapped = False  # was opened: a mapping may outlive that, and changes times without asking us
        self.set_id = False  # may have set-id bits: a write must clear them
        self.removed_name: bytes | None = None  # the last name of what has none now, and is in removed/ therefore


class Inodes:
    """The table. All functions raise OSError and are called with `lock` held, except where they say otherwise."""

    def __init__(self, tmpfs: PrivateTmpfs) -> None:
        self.tmpfs = tmpfs
        self.mount_fd = tmpfs.mount_fd
        self.lock = threading.RLock()  # two threads bring the namespace's requests, a third one asks for the feed
        self._paths = Descriptors(tmpfs.mount_fd, os.O_PATH | os.O_NOFOLLOW, _PATH_DESCRIPTORS)
        root = Node(ROOT_NODE, syscalls.name_to_handle(tmpfs.mount_fd, TREE))
        root.lookups = 1  # the kernel never forgets the root
        self.nodes: dict[int, Node] = {ROOT_NODE: root}
        self._forgotten = Generations()

    def close(self) -> None:
        self._paths.close()
        self.tmpfs.close()

    def node(self, inode: int) -> Node:
        """The known inode of that number. ESTALE when there is none. The fast path is safe from any thread."""
        found = self.nodes.get(inode)
        return self._recalled(inode) if found is None else found

    def _recalled(self, inode: int) -> Node:
        """An inode that the kernel forgot and asks for again, by a handle that somebody kept."""
        with self.lock:
            handle = self._forgotten.handle(inode)
            if handle is None:
                raise OSError(ESTALE, os.strerror(ESTALE))
            node = Node(inode, handle)
            self._paths.get(node)  # ESTALE when it was removed since
            self._forgotten.forget(inode)
            self.nodes[inode] = node
            return node

    def stat(self, node: Node) -> os.stat_result:
        return os.fstat(self._paths.get(node))

    def path_descriptor(self, node: Node) -> int:
        """An O_PATH descriptor of the inode, not the caller's to close, good while the lock is held."""
        return self._paths.get(node)

    def open(self, node: Node, flags: int) -> int:
        """A new descriptor of the inode, the caller's to close. Safe from any thread."""
        return syscalls.open_by_handle(self.mount_fd, node.handle, flags)

    def open_for_data(self, node: Node) -> int:
        """A new descriptor of a regular file with all access that its inode flags allow, the caller's to close."""
        return open_for_data(self.mount_fd, node.handle)

    def is_open_elsewhere(self, node: Node) -> bool:
        """Whether any descriptor or mapping of the file is left: an exclusive lease is given to the only one."""
        fd = self.open(node, os.O_RDONLY)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def descriptor_path(self, node: Node) -> str:
        """A path of this process's own that names the inode, for calls that take no O_PATH descriptor."""
        return f"/proc/self/fd/{self._paths.get(node)}"

    def data_ranges(self, node: Node) -> list[tuple[int, int]]:
        """Byte ranges (end exclusive) of a regular file that are no holes; allocated and never written is a hole."""
        ranges, end = [], 0
        fd = self.open(node, os.O_RDONLY)
        try:
            while True:
                start = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, start, os.SEEK_HOLE)
                ranges.append((start, end))
        except OSError as error:
            if error.errno != ENXIO:  # no data from here on
                raise
        finally:
            os.close(fd)
        return ranges

    def read_symlink(self, node: Node) -> bytes:
        return os.readlink(b"", dir_fd=self._paths.get(node))

    def display_path(self, node: Node) -> str:
        """Where the inode is in the tree, for people: "" is the root; the name it had, when it was unlinked.

        Names are bytes to the kernel; those that are no UTF-8 are shown with escapes, for JSON can carry nothing else.
        """
        if node.removed_name is not None:
            return f"{node.removed_name.decode(errors='backslashreplace')} (deleted)"
        path = os.readlink(os.fsencode(self.descriptor_path(node)))
        return path.removeprefix(b"/" + TREE).removeprefix(b"/").decode(errors="backslashreplace")

    def forget(self, inode: int, count: int, *, keep: bool) -> bool:
        """The kernel dropped `count` references; True when the inode is gone from the store by that.

        An inode that the kernel no longer refers to is found again by name, so it is dropped from the table: not if the
        books `keep` it, who name it to people.
        """
        node = self.nodes.get(inode)
        if node is None or inode == ROOT_NODE:
            return False
        node.lookups -= count
        if node.lookups > 0:
            return False
        if node.removed_name is None:
            if not keep:
                self._drop(inode)
                self._forgotten.remember(node.handle)
            return False
        self._remove_for_good(node)
        self._drop(inode)
        return True

    def _remove_for_good(self, node: Node) -> None:
        name = b"%d" % node.inode
        is_directory = stat.S_ISDIR(os.stat(name, dir_fd=self.tmpfs.removed_fd, follow_symlinks=False).st_mode)
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=self.tmpfs.removed_fd)

    def _drop(self, inode: int) -> None:
        self._paths.discard(inode)
        del self.nodes[inode]
