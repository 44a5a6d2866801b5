"""The inodes of a pool's tmpfs that the kernel has heard of: by number, reached by file handle.

An inode is known by its number (the FUSE node id; tmpfs with inode64 never gives one twice), so a million files need no
million descriptors. What must be known of it after a kill is in the node table, and brought back from there when the
kernel asks: a daemon that comes back starts with no `Node` at all. What the kernel forgot is there as well.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sharedfs.common.names import printable
from sharedfs.fuse.protocol import ROOT_NODE
from sharedfs.linux import syscalls
from sharedfs.linux.file_paths import long_path, short_path
from sharedfs.storage import inode_cost
from sharedfs.storage.data_access import DataAccess
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.inode_table import NodeTable
from sharedfs.storage.journal import PUMP, Journal
from sharedfs.storage.node import SET_ID_BITS, Node
from sharedfs.storage.node_words import Words, node_of, words_of
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tmpfs import TREE, PrivateTmpfs

_PATH_DESCRIPTORS = 2048
_CLOSING_SECONDS = 0.02  # which others may take to close a file
# Nobody but us changes the store, and every change of a name goes through the kernel that caches it.
ENTRY_SECONDS = 3600


class Inodes:
    """The table. All functions raise OSError and are called with `lock` held, except where they say otherwise."""

    def __init__(self, tmpfs: PrivateTmpfs, state: StateFiles | None = None, journal: Journal | None = None) -> None:
        """Without `state`, nothing outlives this object."""
        state = StateFiles() if state is None else state
        self.tmpfs = tmpfs
        self.mount_fd = tmpfs.mount_fd
        self._open_blocks: dict[object, int] = {}  # of `opened`, by thread
        self.lock = threading.RLock()  # two threads bring the namespace's requests, a third one asks for the feed
        self.slot = (Journal(state) if journal is None else journal).slots[PUMP]
        self.table = NodeTable(state)
        self.access = DataAccess(tmpfs.mount_fd)
        self._paths = Descriptors(lambda node: self.open(node, os.O_PATH | os.O_NOFOLLOW), _PATH_DESCRIPTORS)
        root = Node(ROOT_NODE, syscalls.name_to_handle(tmpfs.mount_fd, TREE))
        root.lookups = 1  # the kernel never forgets the root
        self.nodes: dict[int, Node] = {ROOT_NODE: root}
        self.removed: dict[int, bytes] = {}  # the last names of what has none now, and is in removed/ therefore
        self._changed: list[Node] = []

    def close(self) -> None:
        self._paths.make_room()
        self.access.close()
        self.table.close()
        self.tmpfs.close()

    def make_room(self) -> None:
        """Close descriptors that can be opened anew; between two operations."""
        self._paths.make_room()

    def node(self, inode: int) -> Node:
        """The known inode of that number. ESTALE when there is none. The fast path is safe from any thread."""
        found = self.nodes.get(inode)
        if found is None:
            with self.lock:
                found = self.find(inode)
                self.nodes[inode] = found
        return found

    def find(self, inode: int) -> Node:
        """An inode that need not be known to the kernel. ESTALE when there is none."""
        found = self.nodes.get(inode)
        if found is None:
            found = node_of(inode, self.table.handle(inode), *self.table.words(inode))
            found.set_id = bool(self.stat(found).st_mode & SET_ID_BITS)  # ESTALE when it was removed since
        return found

    def add(self, handle: bytes) -> Node:
        """The inode of a file handle, which may be known or new; it is remembered until it is gone."""
        inode = self.table.remember(handle)
        node = self.nodes[inode] = node_of(inode, handle, *self.table.words(inode))
        return node

    # -- what outlives us --------------------------------------------------------------------------------------------

    def billed_inodes(self, payer_for: Callable[[int], int]) -> dict[int, int]:
        """What names and inodes take beyond those that come with the size, by who pays for the maker, in bytes.

        From any thread.
        """
        made_by, inodes = dict[int, int](), self.tmpfs.inodes()
        for maker, made in dict(self.table.made_by).items():
            payer = payer_for(maker)
            made_by[payer] = made_by.get(payer, 0) + made
        return inode_cost.billed(
            self.tmpfs.room.size_bytes, sum(made_by.values()) if inodes is None else inodes, made_by
        )

    def refer(self, node: Node) -> None:
        """The kernel is told of an inode once more."""
        node.lookups += 1
        self.changed(node)

    def made(self, node: Node, maker: int) -> None:
        """The kernel is told of a new inode; its memory is billed to tenant `maker`, 0 for nobody."""
        if maker:
            self.table.made(node.inode, maker)
        self.refer(node)

    def changed(self, node: Node) -> None:
        """To be saved with the answer to the request under way."""
        if node.inode != ROOT_NODE:
            self._changed.append(node)

    def take_changes(self) -> list[Words]:
        if not self._changed:
            return []
        words = [words_of(node) for node in self._changed]
        self._changed.clear()
        return words

    def save(self, changes: Iterable[Words]) -> None:
        for words in changes:
            self.table.save(*words)

    # -- inodes ------------------------------------------------------------------------------------------------------

    def stat(self, node: Node) -> os.stat_result:
        return os.fstat(self._paths.get(node))

    def path_descriptor(self, node: Node) -> int:
        """An O_PATH descriptor of the inode, not the caller's to close, good while the lock is held."""
        return self._paths.get(node)

    @property
    def path_descriptors(self) -> dict[int, int]:
        """Those that are open now, by inode. For sharedfs/ops/fastpath.c."""
        return self._paths.by_inode

    def open(self, node: Node, flags: int) -> int:
        """A new descriptor of the inode, the caller's to close. Safe from any thread."""
        return syscalls.open_by_handle(self.mount_fd, node.handle, flags)

    @contextmanager
    def opened(self, node: Node, flags: int = os.O_RDONLY) -> Iterator[int]:
        """As `open`, for as long as the block lasts, also with access that is kept. Safe from any thread."""
        try:
            fd = self.open(node, flags)
        except PermissionError:
            kept = self.access.kept(node) if flags == os.O_RDWR else None
            if kept is None:
                raise
            fd = kept
        block = object()
        self._open_blocks[block] = threading.get_ident()
        try:
            yield fd
        finally:
            os.close(fd)
            del self._open_blocks[block]

    def let_others_close(self) -> bool:
        """Wait for what other threads have `opened` by now: a file that was removed is free only then. Always True."""
        asking = threading.get_ident()
        blocks = [block for block, thread in list(self._open_blocks.items()) if thread != asking]
        deadline = time.monotonic() + _CLOSING_SECONDS
        while any(block in self._open_blocks for block in blocks) and time.monotonic() < deadline:
            time.sleep(_CLOSING_SECONDS / 100)
        return True

    def is_open_elsewhere(self, node: Node) -> bool:
        """Whether any descriptor or mapping of the file is left. Where we cannot look there may be."""
        return self.stat_unless_open(node) is None

    def stat_unless_open(self, node: Node) -> os.stat_result | None:
        """The attributes of a file that no mapping can change: an exclusive lease is given to the only descriptor.

        None where there may be another one, or a mapping.
        """
        try:
            with self.opened(node) as fd:
                return os.fstat(fd) if is_the_only_one(fd) else None
        except OSError:
            return None

    def descriptor_path(self, node: Node) -> str:
        """A path of this process's own that names the inode, for calls that take no O_PATH descriptor."""
        return f"/proc/self/fd/{self._paths.get(node)}"

    def links(self, node: Node, found: os.stat_result) -> int:
        """How many names the inode has: its place in removed/ is none."""
        return 0 if node.inode in self.removed else found.st_nlink

    def read_symlink(self, node: Node) -> bytes:
        return os.readlink(b"", dir_fd=self._paths.get(node))

    def display_path(self, node: Node) -> str:
        """Where the inode is in the tree, for people: "" is the root; the name it had, when it was unlinked.

        Names are shown with escapes (`common/names.py`): JSON and terminals must not be at the mercy of who makes them.
        """
        if node.inode in self.removed:
            return f"{printable(self.removed[node.inode])} (deleted)"
        path = short_path(self._paths.get(node))
        return f"(inode {node.inode}, at a path of more than 4095 bytes)" if path is None else printable(_in_tree(path))

    def path_of(self, node: Node) -> bytes:
        """Where a regular file that has a name is in the tree, relative to its root. Needs no lock.

        A path of more than 4095 bytes takes long.
        """
        with self.opened(node) as fd:
            path = short_path(fd)
            return _in_tree(long_path(fd) if path is None else path)

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel has only so many references left. An inode without a name that has none is gone.

        An inode that the kernel no longer refers to is found again by name or by handle, so no `Node` is kept of it.
        """
        if lookups == 0 and inode in self.removed:
            self.drop(inode)
            self.tmpfs.remove_for_good(inode, self.removed.pop(inode))
            return
        node = self.nodes.get(inode)
        if node is not None:
            node.lookups = lookups
            if lookups == 0:
                self._release(inode)
        self.table.save(inode, lookups, self.table.words(inode)[1] if lookups else 0)

    def lookups_of(self, inode: int) -> int:
        node = self.nodes.get(inode)
        return self.table.words(inode)[0] if node is None else node.lookups

    def drop(self, inode: int) -> None:
        """The inode is gone: forget all of it."""
        self._release(inode)
        self.table.forget(inode)

    def _release(self, inode: int) -> None:
        self._paths.discard(inode)
        self.access.drop(inode)
        self.nodes.pop(inode, None)


def is_the_only_one(fd: int) -> bool:
    """Whether there is no other descriptor of a file, and no mapping. Where we cannot look there may be."""
    try:
        # Who opens the file while we hold the lease waits until we do no more, and the kernel tells us with a signal:
        # with SIGIO, of which we would die, if we did not ask for one that is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _in_tree(path: bytes) -> bytes:
    return path.removeprefix(b"/" + TREE).removeprefix(b"/")
