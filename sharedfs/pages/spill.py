"""Spilled files: content that nobody pays for, on disk instead of in memory, until somebody opens the file again.

The file stays in the tree with its size, times and names; its pages are gone. Nothing is lost whenever we or the host
are killed: the copy is written and synced first, then the file is marked (an extended attribute), then its pages are
freed; and on the way back the pages first, then the mark, then the copy. A file that is marked is as its copy says,
and has not been open since; a copy without a mark is waste.

A copy is named by its file's handle, which is never another file's. It starts with a line of JSON that says whose copy
it is and which pages the file had (inclusive runs), and continues with their content up to the file's size. What is not
a regular file of this user's own, with one name and such a line, is neither deleted nor written over.

Only an OPEN or a truncation can want the content, so these wait for it (`bring_back`); reads, writes and mappings come
after an OPEN.
"""

import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EIO, ENOMEM, ENOSPC
from typing import BinaryIO

from sharedfs.accounting.books import Books
from sharedfs.common.errors import SCARCE
from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, byte_parts
from sharedfs.ledger.tenant import NOBODY
from sharedfs.linux import syscalls
from sharedfs.pool import spill_directory
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_COPY_NAME = re.compile("[0-9a-f]{16,512}")
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MARK = b"trusted.sharedfs.spilled"
_UNFINISHED = ".new"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Copy:
    """`spilled_bytes` are those of the file, `tmpfs_bytes` what the copy takes of memory where it is on a tmpfs."""

    name: str
    spilled_bytes: int
    tmpfs_bytes: int


class Spill:
    """The copies in a directory of the pool's own (`pool/spill_directory.py`) by its descriptor; None: there are none.

    The descriptor becomes this object's to close. What else is in the directory is left alone.

    `write` and `bring_back` come from threads that may wait for a disk; all else is quick.
    """

    def __init__(self, directory_fd: int | None, store: Store, books: Books) -> None:
        self._directory_fd = directory_fd
        self._store = store
        self._books = books
        self._copies: dict[int, _Copy] = {}
        self._busy = threading.Lock()  # over the freeing and the filling of a file's pages
        self.brought_back = 0
        self._on_tmpfs = directory_fd is not None and syscalls.is_on_tmpfs(directory_fd)
        self._draft_bytes = 0
        if directory_fd is not None:
            self._find_copies(directory_fd)

    def __contains__(self, inode: int) -> bool:
        return inode in self._copies

    def files(self) -> dict[int, int]:
        """The bytes that each spilled file had in memory, by inode."""
        return {inode: copy.spilled_bytes for inode, copy in self._copies.copy().items()}

    @property
    def tmpfs_bytes(self) -> int:
        """What the copies take of memory, charged to the pool's cgroup as well, where they are on a tmpfs."""
        return self._draft_bytes + sum(copy.tmpfs_bytes for copy in self._copies.copy().values())

    def _tmpfs_bytes_of(self, name: str) -> int:
        if not self._on_tmpfs:
            return 0
        return syscalls.STAT_BLOCK_BYTES * os.stat(name, dir_fd=self._directory_fd, follow_symlinks=False).st_blocks

    def _find_copies(self, directory_fd: int) -> None:
        """Take over the copies of marked files, and free what these still or again have; other copies are left over.

        The copy of a marked file that is damaged is taken over, too: to open the file is an error, not an empty file.
        """
        for name in os.listdir(directory_fd):
            node, ours = self._marked(name), is_copy(directory_fd, name)
            if node is not None:
                spilled_bytes = self._bytes_of(self._known_runs(name)) if ours else 0
                self._copies[node.inode] = _Copy(name, spilled_bytes, self._tmpfs_bytes_of(name) if ours else 0)
                self._free(node)
            elif ours:
                os.unlink(name, dir_fd=directory_fd)
            else:
                log.warning("%s is no copy of a spilled file: left alone", name)

    def _known_runs(self, name: str) -> list[PageRange]:
        try:
            with self._opened_copy(name) as copy:
                return _runs(copy)
        except (OSError, ValueError):
            return []

    def _marked(self, name: str) -> Node | None:
        try:
            handle = bytes.fromhex(name)
            fd = syscalls.open_by_handle(self._store.mount_fd, handle, os.O_RDONLY)
        except ValueError:
            return None
        except OSError as error:
            if error.errno in SCARCE:  # it may be marked: its content is not to be lost for that
                raise
            return None
        try:
            os.getxattr(fd, _MARK)
            return Node(os.fstat(fd).st_ino, handle)
        except OSError:
            return None
        finally:
            os.close(fd)

    # -- out ---------------------------------------------------------------------------------------------------------

    def write(self, node: Node, is_unchanged: Callable[[], bool]) -> int:
        """Spill a file that nobody has open or mapped; the bytes freed, 0 if that changed while it was copied.

        `is_unchanged` is asked with the store's lock held. Raises OSError when the disk or the file does not let us;
        nothing has changed then.
        """
        assert self._directory_fd is not None
        name = node.handle.hex()
        with self._busy:
            runs = self._books.questions.runs_where(node.inode, lambda _: True)
            spilled_bytes = self._bytes_of(runs)
            with self._drafting(spilled_bytes):
                with self._store.opened(node, os.O_RDWR) as fd:
                    self._copy_out(fd, name, runs)
                with self._store.lock:
                    if not is_unchanged():
                        self._remove(name)
                        return 0
                    os.setxattr(self._store.descriptor_path(node), _MARK, name.encode())
                    self._copies[node.inode] = _Copy(name, spilled_bytes, self._tmpfs_bytes_of(name))
            self._free(node)
        return spilled_bytes

    @contextmanager
    def _drafting(self, copy_bytes: int) -> Iterator[None]:
        """While a copy is made that is not among the `_copies`."""
        self._draft_bytes = copy_bytes if self._on_tmpfs else 0
        try:
            yield
        finally:
            self._draft_bytes = 0

    def _copy_out(self, fd: int, name: str, runs: list[PageRange]) -> None:
        """Raises FileExistsError when one of the names is there and is no copy."""
        directory, size, draft = self._directory_fd, os.fstat(fd).st_size, name + _UNFINISHED
        assert directory is not None
        for left in (draft, name):
            self._remove(left)
        copy_fd = os.open(
            draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            with open(copy_fd, "wb", closefd=False) as copy:
                copy.write(json.dumps({"copy_of": name, "runs": runs}).encode() + b"\n")
                for start, end in byte_parts(runs, self._books.page_bytes, size, _CHUNK_BYTES):
                    copy.write(os.pread(fd, end - start, start))
            os.fsync(copy_fd)
            syscalls.rename(directory, draft.encode(), directory, name.encode(), syscalls.RENAME_NOREPLACE)
            os.fsync(directory)
            os.posix_fadvise(copy_fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            for left in (draft, name):
                self._remove(left)
            raise
        finally:
            os.close(copy_fd)

    def _free(self, node: Node) -> None:
        with self._store.opened(node, os.O_RDWR) as fd:
            found = os.fstat(fd)
            syscalls.punch_hole(fd, 0, UNLIMITED_BYTES)
            self._books.pages.uncharge(node.inode, 0, LAST_PAGE)
            syscalls.restore_times(fd, found.st_atime_ns, found.st_mtime_ns)

    # -- back --------------------------------------------------------------------------------------------------------

    def bring_back(self, inode: int) -> None:
        """The file has its pages again, and they are nobody's until somebody uses them. No-op when it is not spilled.

        Raises OSError, ENOSPC of a full pool for one; the file is spilled as before then.
        """
        with self._busy:
            copy = self._copies.get(inode)
            if copy is None:
                return
            node = self._store.node(inode)
            with self._store.opened(node, os.O_RDWR) as fd:
                found = os.fstat(fd)
                with self._books.changes.under_way(inode), self._store.tmpfs.room.allocating(copy.spilled_bytes):
                    self._copy_in(node, fd, copy.name, found.st_size)
                syscalls.restore_times(fd, found.st_atime_ns, found.st_mtime_ns)
                os.removexattr(fd, _MARK)
            self.forget(inode)
            self.brought_back += 1

    def _copy_in(self, node: Node, fd: int, name: str, size: int) -> None:
        page_bytes = self._books.page_bytes
        try:
            with self._opened_copy(name) as copy:
                runs = _runs(copy)
                for first, last in runs:
                    start, end = first * page_bytes, (last + 1) * page_bytes
                    syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, start, end - start)
                    self._books.pages.charge_allocated(node.inode, [(first, last)], NOBODY)
                for start, end in byte_parts(runs, page_bytes, size, _CHUNK_BYTES):
                    os.pwrite(fd, _read_exactly(copy, end - start), start)
        except (OSError, ValueError) as error:
            log.warning("inode %d cannot come back from its copy %s: %s", node.inode, name, error)
            syscalls.punch_hole(fd, 0, UNLIMITED_BYTES)
            self._books.pages.uncharge(node.inode, 0, LAST_PAGE)
            full = isinstance(error, OSError) and error.errno in (ENOSPC, ENOMEM)
            raise OSError(error.errno if full else EIO, str(error)) from error  # type: ignore[union-attr]

    def forget(self, inode: int) -> None:
        """The file has its content, or is gone: its copy goes."""
        copy = self._copies.pop(inode, None)
        if copy is not None:
            self._remove(copy.name)

    def discard(self) -> None:
        """The pool ends, and with it its files: so do their copies."""
        for inode in list(self._copies):
            self.forget(inode)

    def remove_directory(self, parent: str, name: str) -> bool:
        """Remove the directory of the copies, PARENT/NAME, unless something is left in it; whether it is gone."""
        return self._directory_fd is not None and spill_directory.remove(parent, name, self._directory_fd)

    def close(self) -> None:
        if self._directory_fd is not None:
            os.close(self._directory_fd)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _bytes_of(self, runs: list[PageRange]) -> int:
        return sum(last - first + 1 for first, last in runs) * self._books.page_bytes

    def _remove(self, name: str) -> None:
        """Remove a copy; what is no copy is left alone."""
        assert self._directory_fd is not None
        if is_copy(self._directory_fd, name):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory_fd)

    def _opened_copy(self, name: str) -> BinaryIO:
        return open(os.open(name, _LOOK, dir_fd=self._directory_fd), "rb")


def is_copy(directory_fd: int, name: str) -> bool:
    """Whether a name in the directory is a copy that sharedfs made, or an unfinished one."""
    handle = name.removesuffix(_UNFINISHED)
    try:
        if not _COPY_NAME.fullmatch(handle):
            return False
        if not stat.S_ISREG(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
            return False
        with open(os.open(name, _LOOK, dir_fd=directory_fd), "rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_uid, stat.S_IMODE(found.st_mode), found.st_nlink) != (os.geteuid(), 0o600, 1):
                return False
            start = b'{"copy_of": "%s"' % handle.encode()
            return file.read(len(start)) == start or (name != handle and found.st_size == 0)
    except OSError:
        return False


def _runs(copy: BinaryIO) -> list[PageRange]:
    """ValueError when the copy does not begin as one."""
    try:
        return [(first, last) for first, last in json.loads(copy.readline())["runs"]]
    except (KeyError, TypeError) as error:
        raise ValueError("it does not say which pages it has") from error


def _read_exactly(copy: BinaryIO, length: int) -> bytes:
    content = copy.read(length)
    if len(content) != length:
        raise ValueError("it is cut short")
    return content
