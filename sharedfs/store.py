"""The store: a private tmpfs that holds the pool's tree as it is.

Names, modes, links, xattrs and times are tmpfs's own, so their semantics are too. The tmpfs is mounted nowhere: no path
of the host leads into it, and it is gone with the last descriptor into it.

Layout of the tmpfs:   tree/ what tenants see       removed/ unlinked files that somebody still uses, by inode number

An inode is known by its number (the FUSE node id; tmpfs with inode64 never gives one twice) and reached by its file
handle, so a million files need no million descriptors. A name is always one component below a directory descriptor and
never followed. All functions raise OSError and are called with `lock` held, except where they say otherwise.
"""

import fcntl
import os
import stat
import threading
from errno import EINVAL, ENOENT, ENOTEMPTY, ENXIO, ESTALE

from sharedfs.descriptors import Descriptors, open_for_data
from sharedfs.generations import Generations
from sharedfs.kernel import syscalls
from sharedfs.kernel.fuse_wire import ROOT_NODE
from sharedfs.kernel.mount_flags import MOUNT_ATTR_ATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSUID

_TREE, _REMOVED = b"tree", b"removed"
_HIDDEN_INODES = 2  # the tmpfs's own root, and removed/
_PATH_DESCRIPTORS = 2048
SET_ID_BITS = stat.S_ISUID | stat.S_ISGID


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


class Store:
    """The tree and the table of its known inodes."""

    def __init__(
        self,
        size_bytes: int,
        inodes: int | None = None,
        root_mode: int = 0o1777,
        root_owner: tuple[int, int] = (0, 0),
        atime_attributes: int = 0,
    ) -> None:
        """`inodes` bounds the number of files (0: no bound, None: as tmpfs), `atime_attributes` are MOUNT_ATTR_ bits.

        Set-id bits and devices never count here: what executes and opens them is the kernel, by the mount of tenants.
        """
        self.lock = threading.RLock()  # two threads bring the namespace's requests, a third one asks for the feed
        options = {"source": "sharedfs", "mode": "0700"} | _bounds(size_bytes, inodes)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | atime_attributes
        self._fsmount_fd = syscalls.detached_mount("tmpfs", options, ["inode64"], attributes)
        # fsmount's descriptor is O_PATH; open_by_handle_at wants a real one
        self.mount_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fsmount_fd)
        for name, mode in ((_TREE, root_mode), (_REMOVED, 0o700)):
            os.mkdir(name, dir_fd=self.mount_fd)
            os.chmod(name, mode, dir_fd=self.mount_fd)
        os.chown(_TREE, *root_owner, dir_fd=self.mount_fd)
        self._removed_fd = os.open(_REMOVED, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.mount_fd)
        tree = os.stat(_TREE, dir_fd=self.mount_fd)
        self._tree_inode = tree.st_ino
        self._paths = Descriptors(self.mount_fd, os.O_PATH | os.O_NOFOLLOW, _PATH_DESCRIPTORS)
        root = Node(ROOT_NODE, syscalls.name_to_handle(self.mount_fd, _TREE))
        root.lookups = 1  # the kernel never forgets the root
        self.nodes: dict[int, Node] = {ROOT_NODE: root}
        self._forgotten = Generations()
        # Numbers of tmpfs's that a listing shows and that are FUSE's node 1: the tree's root, and what is above it.
        self.root_numbers = {self._tree_inode: ROOT_NODE, os.fstat(self.mount_fd).st_ino: ROOT_NODE}

    def close(self) -> None:
        self._paths.close()
        for fd in (self._removed_fd, self.mount_fd, self._fsmount_fd):
            os.close(fd)

    def used_bytes(self) -> int:
        pool = os.fstatvfs(self.mount_fd)
        return (pool.f_blocks - pool.f_bfree) * pool.f_frsize

    def reconfigure(self, size_bytes: int, inodes: int | None, atime_attributes: int) -> None:
        """Change the bounds and who moves access times. EINVAL when more is in use than would be allowed."""
        syscalls.reconfigure_tmpfs(self.mount_fd, _bounds(size_bytes, inodes))
        syscalls.set_mount_attributes(self._fsmount_fd, MOUNT_ATTR_ATIME | MOUNT_ATTR_NODIRATIME, atime_attributes)

    # -- inodes ------------------------------------------------------------------------------------------------------

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
        return path.removeprefix(b"/" + _TREE).removeprefix(b"/").decode(errors="backslashreplace")

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

    # -- names -------------------------------------------------------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """The inode of a name in a directory; "." and ".." too. The root's `st_ino` is tmpfs's: use `node.inode`."""
        if name == b".":
            return parent, self.stat(parent)
        directory = self._directory(parent)
        if name == b".." and parent.inode == ROOT_NODE:
            name = b"."
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        inode = self._number(found)
        node = self.nodes.get(inode)
        if node is None:
            node = self.nodes[inode] = Node(inode, syscalls.name_to_handle(directory, name))
            self._forgotten.forget(inode)
        node.set_id = bool(found.st_mode & SET_ID_BITS)
        return node, found

    def walk(self, path: str) -> Node:
        """The inode at a path relative to the tree's root, never through a symlink. ENOENT when there is none."""
        node = self.nodes[ROOT_NODE]
        for name in os.fsencode(path).split(b"/"):
            if name not in (b"", b"."):
                if name == b"..":
                    raise OSError(ENOENT, os.strerror(ENOENT))
                node, _ = self.lookup(node, name)
        return node

    def make(
        self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int, device: int = 0
    ) -> tuple[Node, os.stat_result]:
        """Make a FIFO, socket, device node or regular file that belongs to its creator. EEXIST when there is one."""
        directory = self._directory(parent, name)
        with _Masked(umask):
            os.mknod(name, mode, device, dir_fd=directory)
        self._own(parent, directory, name, mode, uid, gid)
        return self.lookup(parent, name)

    def create(
        self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int
    ) -> tuple[Node, os.stat_result, int]:
        """Make a regular file; its descriptor, open for reading and writing, is the caller's to close."""
        directory = self._directory(parent, name)
        with _Masked(umask):
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode & 0o7777, dir_fd=directory)
        return self._created(parent, fd, uid, gid)

    def create_nameless(
        self, parent: Node, mode: int, umask: int, uid: int, gid: int
    ) -> tuple[Node, os.stat_result, int]:
        """O_TMPFILE: a file that inherits from `parent` and has no name there. It may get one with `link`."""
        directory = self._directory(parent)
        with _Masked(umask):
            fd = os.open(b".", os.O_TMPFILE | os.O_RDWR, mode & 0o7777, dir_fd=directory)
        node, found, fd = self._created(parent, fd, uid, gid)
        os.link(f"/proc/self/fd/{fd}", b"%d" % node.inode, dst_dir_fd=self._removed_fd, follow_symlinks=True)
        node.removed_name = b"(a file without a name)"
        return node, found, fd

    def _created(self, parent: Node, fd: int, uid: int, gid: int) -> tuple[Node, os.stat_result, int]:
        try:
            if uid or gid:
                self._own_file(parent, fd, uid, gid)
            found = os.fstat(fd)
            node = Node(found.st_ino, syscalls.name_to_handle(fd, b""))
        except OSError:
            os.close(fd)
            raise
        node.set_id = bool(found.st_mode & SET_ID_BITS)
        self.nodes[node.inode] = node
        return node, found, fd

    def make_directory(
        self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int
    ) -> tuple[Node, os.stat_result]:
        directory = self._directory(parent, name)
        with _Masked(umask):
            os.mkdir(name, mode & 0o1777, dir_fd=directory)
        self._own(parent, directory, name, 0, uid, gid)
        return self.lookup(parent, name)

    def make_symlink(self, parent: Node, name: bytes, target: bytes, uid: int, gid: int) -> tuple[Node, os.stat_result]:
        directory = self._directory(parent, name)
        os.symlink(target, name, dir_fd=directory)
        self._own(parent, directory, name, 0, uid, gid)
        return self.lookup(parent, name)

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        directory = self._directory(parent, name)
        if node.removed_name is None:
            os.link(self.descriptor_path(node), name, dst_dir_fd=directory, follow_symlinks=True)
        else:  # a file of O_TMPFILE: for others the kernel does not ask
            number = b"%d" % node.inode
            syscalls.rename(self._removed_fd, number, directory, name, syscalls.RENAME_NOREPLACE)
            node.removed_name = None

    def unlink(self, parent: Node, name: bytes) -> int | None:
        """Remove a name that is no directory; the inode's number when the inode is gone by that, else None.

        A file without a name lives on in removed/ while the kernel has a reference: it may be open or mapped (a mapping
        holds the file's FUSE inode, so the kernel's FORGET comes after the last munmap).
        """
        directory = self._directory(parent, name)
        node, found = self.lookup(parent, name)
        if found.st_nlink > 1:
            os.unlink(name, dir_fd=directory)
            return None
        if node.lookups == 0:
            os.unlink(name, dir_fd=directory)
            self._drop(node.inode)
            return node.inode
        os.rename(name, b"%d" % node.inode, src_dir_fd=directory, dst_dir_fd=self._removed_fd)
        node.removed_name = name
        return None

    def remove_directory(self, parent: Node, name: bytes) -> None:
        """Remove an empty directory; it lives on in removed/ like a file while the kernel has a reference."""
        directory = self._directory(parent, name)
        node, found = self.lookup(parent, name)
        if node.lookups == 0 or not stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=directory)
            self._drop(node.inode)
        else:
            self._set_aside(directory, name, node)

    def _set_aside(self, directory: int, name: bytes, node: Node) -> None:
        """Move an empty directory to removed/."""
        if not self._is_empty(node):
            raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY))
        os.rename(name, b"%d" % node.inode, src_dir_fd=directory, dst_dir_fd=self._removed_fd)
        node.removed_name = name

    def _is_empty(self, node: Node) -> bool:
        fd = self.open(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return next(entries, None) is None
        finally:
            os.close(fd)

    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int) -> int | None:
        """renameat2(2); the number of the inode that is gone by that, else None."""
        old_directory, new_directory = self._directory(parent, name), self._directory(new_parent, new_name)
        keeps_target = flags & (syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE)
        replaced = None if keeps_target else self._replaced_by_rename(parent, name, new_parent, new_name)
        if replaced is None:
            syscalls.rename(old_directory, name, new_directory, new_name, flags)
            return None
        node, found = replaced
        number = b"%d" % node.inode
        source_is_directory = stat.S_ISDIR(self.lookup(parent, name)[1].st_mode)
        keeps_directory = stat.S_ISDIR(found.st_mode) and source_is_directory and node.lookups > 0
        keeps_file = not stat.S_ISDIR(found.st_mode) and node.lookups > 0 and found.st_nlink == 1
        if keeps_directory:
            self._set_aside(new_directory, new_name, node)
        elif keeps_file:  # a second name first, so that the replaced file is never without one
            os.link(self.descriptor_path(node), number, dst_dir_fd=self._removed_fd, follow_symlinks=True)
        try:
            syscalls.rename(old_directory, name, new_directory, new_name, flags)
        except OSError:
            if keeps_directory:
                node.removed_name = None
                os.rename(number, new_name, src_dir_fd=self._removed_fd, dst_dir_fd=new_directory)
            elif keeps_file:
                os.unlink(number, dir_fd=self._removed_fd)
            raise
        if keeps_file:
            node.removed_name = new_name
        elif not keeps_directory and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
            self._drop(node.inode)
            return node.inode
        return None

    def _replaced_by_rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes
    ) -> tuple[Node, os.stat_result] | None:
        """What a rename that replaces takes the name from, None for nothing."""
        try:
            target, found = self.lookup(new_parent, new_name)
        except FileNotFoundError:
            return None
        source, _ = self.lookup(parent, name)
        return None if source is target else (target, found)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _directory(self, node: Node, new_name: bytes = b"x") -> int:
        """The descriptor of a directory in which `new_name` may be used; one component and nothing else."""
        if not new_name or b"/" in new_name or new_name in (b".", b".."):
            raise OSError(EINVAL, os.strerror(EINVAL))
        if node.removed_name is not None:
            raise OSError(ENOENT, os.strerror(ENOENT))
        return self._paths.get(node)

    def _number(self, found: os.stat_result) -> int:
        """The number that the kernel knows an inode by: the tree's root is FUSE's node 1."""
        return ROOT_NODE if found.st_ino == self._tree_inode else found.st_ino

    def _inherited_set_gid(self, parent: Node) -> int:
        return os.fstat(self._paths.get(parent)).st_mode & stat.S_ISGID

    def _own(self, parent: Node, directory: int, name: bytes, mode: int, uid: int, gid: int) -> None:
        """Give a new inode to its creator. A set-gid directory gives its own group, as tmpfs did by itself."""
        if not uid and not gid:
            return
        group = -1 if self._inherited_set_gid(parent) else gid
        os.chown(name, uid, group, dir_fd=directory, follow_symlinks=False)
        if mode & SET_ID_BITS:  # chown took them away
            now = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            os.chmod(name, stat.S_IMODE(now | mode & SET_ID_BITS), dir_fd=directory)

    def _own_file(self, parent: Node, fd: int, uid: int, gid: int) -> None:
        mode = os.fstat(fd).st_mode
        os.fchown(fd, uid, -1 if self._inherited_set_gid(parent) else gid)
        if mode & SET_ID_BITS:  # fchown took them away
            os.fchmod(fd, stat.S_IMODE(mode))

    def _remove_for_good(self, node: Node) -> None:
        name = b"%d" % node.inode
        is_directory = stat.S_ISDIR(os.stat(name, dir_fd=self._removed_fd, follow_symlinks=False).st_mode)
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=self._removed_fd)

    def _drop(self, inode: int) -> None:
        self._paths.discard(inode)
        del self.nodes[inode]


class _Masked:
    """Make inodes with a tenant's umask: tmpfs applies it, or a default ACL in its place. The lock is held."""

    __slots__ = ("_before", "_umask")

    def __init__(self, umask: int) -> None:
        self._umask = umask

    def __enter__(self) -> None:
        self._before = os.umask(self._umask)

    def __exit__(self, *_: object) -> None:
        os.umask(self._before)


def _bounds(size_bytes: int, inodes: int | None) -> dict[str, str]:
    bounds = {"size": str(size_bytes)}
    if inodes is not None:
        bounds["nr_inodes"] = str(inodes + _HIDDEN_INODES if inodes else 0)
    return bounds
