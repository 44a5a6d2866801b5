"""The directory of a pool's spilled files, DIR/NAME: proved to be made by sharedfs before anything in it is touched.

It carries a mark that only root can set (a trusted extended attribute with the directory's own inode number and the
host), is owned by this user with mode 0700, and is reached without following a symbolic link through directories that
nobody else can change. Whoever serves the pool holds a lock on it by the descriptor, which the keeper hands to daemons:
the path is resolved once in a pool's life.
"""

import fcntl
import json
import os
import stat
from contextlib import suppress
from errno import EEXIST, ENOTEMPTY, EOPNOTSUPP
from pathlib import Path

from sharedfs.common.errors import CallerMistake
from sharedfs.common.trusted_paths import open_trusted
from sharedfs.linux import syscalls

_MARK = "trusted.sharedfs.spill"
_NEEDS_ATTRIBUTES = "give a spill_dir on a disk that keeps trusted extended attributes"
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MACHINE_ID = Path("/etc/machine-id")


def check(directory: str, name: str) -> None:
    """Raises CallerMistake unless `open_or_make` would succeed. Changes nothing."""
    parent = _open_parent(directory)
    try:
        os.close(_open_ours(parent, directory, name))
    except FileNotFoundError:
        _check_takes_a_new_one(parent, directory)
    finally:
        os.close(parent)


def open_or_make(directory: str, name: str) -> int:
    """A locked descriptor of DIR/NAME, the caller's to close. Raises CallerMistake when that cannot be sharedfs's."""
    parent = _open_parent(directory)
    try:
        try:
            return _open_ours(parent, directory, name)
        except FileNotFoundError:
            _make(parent, directory, name)
            return _open_ours(parent, directory, name)
    finally:
        os.close(parent)


def remove(directory: str, name: str, directory_fd: int) -> bool:
    """Remove DIR/NAME, whose descriptor is `directory_fd`, when it is empty and still there; whether it was."""
    try:
        parent = _open_parent(directory)
    except CallerMistake:
        return False
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not os.path.samestat(found, os.fstat(directory_fd)):
            return False
        os.rmdir(name, dir_fd=parent)
    except OSError:
        return False
    finally:
        os.close(parent)
    return True


def _open_parent(directory: str) -> int:
    return open_trusted(directory, "give a spill_dir on a disk that only root can change, and all above it")


def _check_takes_a_new_one(parent: int, directory: str) -> None:
    """As far as can be told without making one: that it is no /proc, which keeps no file, and takes the mark."""
    place = f"/proc/self/fd/{parent}"
    if os.fstatvfs(parent).f_blocks == 0:
        raise CallerMistake(f"{directory} is on a filesystem that keeps no files: give a spill_dir on a disk")
    if not os.access(place, os.W_OK):
        raise CallerMistake(f"{directory} cannot be written to: give a spill_dir that can")
    try:
        os.getxattr(place, _MARK)
    except OSError as error:
        if error.errno == EOPNOTSUPP:
            raise CallerMistake(f"{directory}: {error.strerror}: {_NEEDS_ATTRIBUTES}") from None


def _open_ours(parent: int, directory: str, name: str) -> int:
    """Raises FileNotFoundError when there is no such name, CallerMistake when it is not proved to be sharedfs's."""
    path = f"{directory}/{name}"
    advice = "choose another spill_dir= or name, or move it away; it was left alone"
    try:
        fd = os.open(name, _READ, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError:
        raise CallerMistake(f"{path} is there and is no directory of sharedfs: {advice}") from None
    fault = _fault_of(fd)
    if fault:
        os.close(fd)
        raise CallerMistake(f"{path} is there and {fault}: {advice}")
    return fd


def _fault_of(fd: int) -> str:
    """What is wrong with a directory that has the name of a pool's; "" for nothing, and it is locked then."""
    found, mark = os.fstat(fd), _mark_of(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        return "others may have a hand in it (it is not root's alone, mode 0700)"
    if mark is None or mark.get("inode") != found.st_ino:
        return "was not made by sharedfs"
    if mark.get("host") != _host():
        return "belongs to a pool of another host"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "is in use by another pool of this name"
    return ""


def _make(parent: int, directory: str, name: str) -> None:
    """Marked before it has its name: what is killed in between leaves no directory that looks like a stranger's."""
    draft = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    path = f"{directory}/{name}"
    try:
        os.mkdir(draft, 0o700, dir_fd=parent)
    except OSError as error:
        raise CallerMistake(f"{path}: {error.strerror}: give a spill_dir that can be written to") from None
    try:
        fd = os.open(draft, _READ, dir_fd=parent)
        try:
            os.fchmod(fd, 0o700)
            mark = {"inode": os.fstat(fd).st_ino, "host": _host()}
            os.setxattr(f"/proc/self/fd/{fd}", _MARK, json.dumps(mark).encode())
        finally:
            os.close(fd)
        syscalls.rename(parent, draft.encode(), parent, name.encode(), syscalls.RENAME_NOREPLACE)
    except OSError as error:
        with suppress(OSError):
            os.rmdir(draft, dir_fd=parent)
        if error.errno not in (EEXIST, ENOTEMPTY):
            raise CallerMistake(f"{path}: {error.strerror}: {_NEEDS_ATTRIBUTES}") from None


def _mark_of(fd: int) -> dict[str, object] | None:
    try:
        mark = json.loads(os.getxattr(f"/proc/self/fd/{fd}", _MARK))
    except (OSError, ValueError):  # there is none, or it is none of sharedfs's
        return None
    return mark if isinstance(mark, dict) else None


def _host() -> str:
    try:
        return _MACHINE_ID.read_text().strip()
    except OSError:
        return ""
