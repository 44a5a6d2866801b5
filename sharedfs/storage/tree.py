"""The store: the pool's tree in a private tmpfs, and every change of its names.

Names, modes, links, xattrs and times are tmpfs's own, so their semantics are too. A name is always one component below
a directory descriptor and never followed. What loses its last name while the kernel still knows it moves to removed/.

What cannot be done twice is written to the journal first, after all that can be wrong with it was looked for: with the
lock held, nothing changes in between. `ops/recovery.py` has the other half.
"""

import os
import stat
from errno import EEXIST, EINVAL, ENOENT, ENOTEMPTY

from sharedfs.fuse.protocol import ROOT_NODE
from sharedfs.linux import syscalls
from sharedfs.storage.inodes import Inodes
from sharedfs.storage.journal import Kind
from sharedfs.storage.node import SET_ID_BITS, Node

_FEW_BLOCKS = 512  # of 512 bytes: what has more pages is not freed while others wait
NAMELESS = b"(a file without a name)"
Found = tuple[Node, os.stat_result]


class Store(Inodes):
    """The tree: known inodes, and names. All functions raise OSError and are called with `lock` held."""

    def lookup(self, parent: Node, name: bytes) -> Found:
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
            node = self.add(syscalls.name_to_handle(directory, name))
        node.set_id = bool(found.st_mode & SET_ID_BITS)
        return node, found

    def walk(self, path: str) -> Node:
        """The inode at a path relative to the tree's root, never through a symlink. ENOENT when there is none."""
        node = self.nodes[ROOT_NODE]
        for name in os.fsencode(path).split(b"/"):
            if name not in (b"", b"."):
                if name == b".." or b"\0" in name:
                    raise OSError(ENOENT, os.strerror(ENOENT))
                node, _ = self.lookup(node, name)
        return node

    def place_of(self, node: Node) -> tuple[int, bytes]:
        """The inode of the directory in which a regular file is, and its name there. Needs no lock, so it may move.

        Takes as long as its path is, which a tenant can make of any length. Raises OSError when it has no such place.
        """
        *above, name = self.path_of(node).split(b"/")
        try:
            parent = self.tmpfs.directory_number(above)
        except FileNotFoundError:
            # The kernel shows a newline so where a path is long.
            above, name = [shown.replace(b"\\012", b"\n") for shown in above], name.replace(b"\\012", b"\n")
            parent = self.tmpfs.directory_number(above)
        return self.tmpfs.root_numbers.get(parent, parent), name

    def make(self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int, device: int = 0) -> Found:
        """Make a FIFO, socket, device node or regular file that belongs to its creator. EEXIST when there is one."""
        directory = self._directory_for_new(parent, name)
        with _Masked(umask):
            os.mknod(name, mode, device, dir_fd=directory)
        self._own(parent, directory, name, mode, uid, gid)
        return self.lookup(parent, name)

    def create(
        self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int
    ) -> tuple[Node, os.stat_result, int]:
        """Make a regular file; its descriptor, open for reading and writing, is the caller's to close."""
        directory = self._directory_for_new(parent, name)
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
        entry = self.tmpfs.removed_entry(node.inode, NAMELESS)
        os.link(f"/proc/self/fd/{fd}", entry, dst_dir_fd=self.tmpfs.removed_fd, follow_symlinks=True)
        self.removed[node.inode] = NAMELESS
        return node, found, fd

    def _created(self, parent: Node, fd: int, uid: int, gid: int) -> tuple[Node, os.stat_result, int]:
        try:
            if uid or gid:
                self._own_file(parent, fd, uid, gid)
            found = os.fstat(fd)
            node = self.add(syscalls.name_to_handle(fd, b""))
        except OSError:
            os.close(fd)
            raise
        node.set_id = bool(found.st_mode & SET_ID_BITS)
        return node, found, fd

    def make_directory(self, parent: Node, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Found:
        directory = self._directory_for_new(parent, name)
        with _Masked(umask):
            os.mkdir(name, mode & 0o1777, dir_fd=directory)
        self._own(parent, directory, name, 0, uid, gid)
        return self.lookup(parent, name)

    def make_symlink(self, parent: Node, name: bytes, target: bytes, uid: int, gid: int) -> Found:
        directory = self._directory_for_new(parent, name)
        os.symlink(target, name, dir_fd=directory)
        self._own(parent, directory, name, 0, uid, gid)
        return self.lookup(parent, name)

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        directory = self._directory(parent, name)
        self._check_absent(directory, name)
        if node.inode not in self.removed:
            self.slot.intend(Kind.LINK, node.inode, parent.inode, name)
            os.link(self.descriptor_path(node), name, dst_dir_fd=directory, follow_symlinks=True)
        else:  # a file of O_TMPFILE: for others the kernel does not ask
            self.slot.intend(Kind.LINK_NAMELESS, node.inode, parent.inode, name)
            entry = self.tmpfs.removed_entry(node.inode, self.removed[node.inode])
            syscalls.rename(self.tmpfs.removed_fd, entry, directory, name, syscalls.RENAME_NOREPLACE)
            del self.removed[node.inode]

    def unlink(self, parent: Node, name: bytes) -> int | None:
        """Remove a name that is no directory; the inode's number when nobody knows the inode after that, else None.

        It is gone then, or in removed/ where it has many pages.

        A file without a name lives on in removed/ while the kernel has a reference: it may be open or mapped (a mapping
        holds the file's FUSE inode, so the kernel's FORGET comes after the last munmap).
        """
        directory = self._directory(parent, name)
        node, found = self.lookup(parent, name)
        self.slot.intend(Kind.REMOVE, node.inode, parent.inode, name)
        if found.st_nlink > 1:
            os.unlink(name, dir_fd=directory)
            return None
        if node.lookups == 0 and found.st_blocks <= _FEW_BLOCKS:
            os.unlink(name, dir_fd=directory)
            self.drop(node.inode)
            return node.inode
        self._move_to_removed(directory, name, node)
        return None if node.lookups else node.inode

    def remove_directory(self, parent: Node, name: bytes) -> None:
        """Remove an empty directory; it lives on in removed/ like a file while the kernel has a reference."""
        directory = self._directory(parent, name)
        node, found = self.lookup(parent, name)
        self.slot.intend(Kind.REMOVE, node.inode, parent.inode, name)
        if node.lookups == 0 or not stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=directory)
            self.drop(node.inode)
        else:
            self._set_aside_empty(directory, name, node)

    def set_aside(self, parent: Node, name: bytes) -> Node:
        """Move what has no other name to removed/, as if the kernel had a reference."""
        node, _ = self.lookup(parent, name)
        self._move_to_removed(self._directory(parent, name), name, node)
        return node

    def _set_aside_empty(self, directory: int, name: bytes, node: Node) -> None:
        """Move an empty directory to removed/."""
        if not self._is_empty(node):
            raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY))
        self._move_to_removed(directory, name, node)

    def _move_to_removed(self, directory: int, name: bytes, node: Node) -> None:
        entry = self.tmpfs.removed_entry(node.inode, name)
        os.rename(name, entry, src_dir_fd=directory, dst_dir_fd=self.tmpfs.removed_fd)
        self.removed[node.inode] = name

    def _is_empty(self, node: Node) -> bool:
        with self.opened(node, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
            return next(entries, None) is None

    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int) -> int | None:
        """renameat2(2); the number of the inode that nobody knows after that, as of `unlink`, else None."""
        old_directory, new_directory = self._directory(parent, name), self._directory(new_parent, new_name)
        keeps_target = flags & (syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE)
        source, source_found = self.lookup(parent, name)
        replaced = None if keeps_target else self._replaced_by_rename(source, new_parent, new_name)
        other = 0 if replaced is None else replaced[0].inode
        self.slot.intend(Kind.RENAME, source.inode, parent.inode, name, new_parent.inode, new_name, other)
        if replaced is None:
            syscalls.rename(old_directory, name, new_directory, new_name, flags)
            return None
        node, found = replaced
        source_is_directory, target_is_directory = stat.S_ISDIR(source_found.st_mode), stat.S_ISDIR(found.st_mode)
        if node.lookups and source_is_directory and target_is_directory:
            self._rename_over_directory(old_directory, name, new_directory, new_name, flags, node)
            return None
        is_kept = node.lookups or found.st_blocks > _FEW_BLOCKS
        if is_kept and not source_is_directory and not target_is_directory and found.st_nlink == 1:
            self._rename_over_file(old_directory, name, new_directory, new_name, flags, node)
            return None if node.lookups else node.inode
        syscalls.rename(old_directory, name, new_directory, new_name, flags)
        if target_is_directory or found.st_nlink == 1:
            self.drop(node.inode)
            return node.inode
        return None

    def note_maker(self, parent: Node, name: bytes, maker: int) -> None:
        """A tenant has made the inode of that name, of which the kernel was not told."""
        handle = syscalls.name_to_handle(self._paths.get(parent), name)
        self.table.made(self.table.remember(handle), maker)

    def _rename_over_directory(
        self, old_directory: int, name: bytes, new_directory: int, new_name: bytes, flags: int, node: Node
    ) -> None:
        self._set_aside_empty(new_directory, new_name, node)
        try:
            syscalls.rename(old_directory, name, new_directory, new_name, flags)
        except OSError:
            del self.removed[node.inode]
            entry = self.tmpfs.removed_entry(node.inode, new_name)
            os.rename(entry, new_name, src_dir_fd=self.tmpfs.removed_fd, dst_dir_fd=new_directory)
            raise

    def _rename_over_file(
        self, old_directory: int, name: bytes, new_directory: int, new_name: bytes, flags: int, node: Node
    ) -> None:
        """The two change places first, so that the replaced one is never without a name and needs no second one.

        A second name takes an inode of the pool's, which may have none left.
        """
        entry = self.tmpfs.removed_entry(node.inode, new_name)
        syscalls.rename(old_directory, name, new_directory, new_name, syscalls.RENAME_EXCHANGE)
        try:
            syscalls.rename(old_directory, name, self.tmpfs.removed_fd, entry, flags)
        except OSError:
            syscalls.rename(old_directory, name, new_directory, new_name, syscalls.RENAME_EXCHANGE)
            raise
        self.removed[node.inode] = new_name

    def _replaced_by_rename(self, source: Node, new_parent: Node, new_name: bytes) -> Found | None:
        """What a rename that replaces takes the name from, None for nothing."""
        try:
            target, found = self.lookup(new_parent, new_name)
        except FileNotFoundError:
            return None
        return None if source is target else (target, found)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _directory(self, node: Node, new_name: bytes = b"x") -> int:
        """The descriptor of a directory in which `new_name` may be used; one component and nothing else."""
        if not new_name or b"/" in new_name or new_name in (b".", b".."):
            raise OSError(EINVAL, os.strerror(EINVAL))
        if node.inode in self.removed:
            raise OSError(ENOENT, os.strerror(ENOENT))
        return self._paths.get(node)

    def _directory_for_new(self, parent: Node, name: bytes) -> int:
        """The descriptor of a directory in which `name` is about to be made: EEXIST when there is one."""
        directory = self._directory(parent, name)
        self._check_absent(directory, name)
        self.slot.intend(Kind.MAKE, directory=parent.inode, name=name)
        return directory

    def _check_absent(self, directory: int, name: bytes) -> None:
        # An exception for what is the rule costs more than the call. Any other error comes again where it is made.
        if os.access(name, os.F_OK, dir_fd=directory, follow_symlinks=False):
            raise FileExistsError(EEXIST, os.strerror(EEXIST))

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

    def _number(self, found: os.stat_result) -> int:
        """The number that the kernel knows an inode by: the tree's root is FUSE's node 1."""
        return ROOT_NODE if found.st_ino == self.tmpfs.tree_inode else found.st_ino


class _Masked:
    """Make inodes with a tenant's umask: tmpfs applies it, or a default ACL in its place. The lock is held."""

    __slots__ = ("_before", "_umask")

    def __init__(self, umask: int) -> None:
        self._umask = umask

    def __enter__(self) -> None:
        self._before = os.umask(self._umask)

    def __exit__(self, *_: object) -> None:
        os.umask(self._before)
