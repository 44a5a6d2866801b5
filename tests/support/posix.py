"""What a test of filesystem behaviour needs: children that do a thing as somebody else, and calls that `os` lacks."""

import ctypes
import os
import pickle
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL, EIO, ENOTRECOVERABLE
from pathlib import Path
from typing import Any

import pytest

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.syncfs.argtypes = [ctypes.c_int]


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, offset, length))


def rename2(old: Path, new: Path, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def syncfs(fd: int) -> None:
    _checked(_libc.syncfs(fd))


class Child:
    """A forked process that runs `action` and hands back what it returns, or the OSError that it raised."""

    def __init__(self, action: Callable[[], Any], user: int | None = None) -> None:
        self._answer, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            return
        code = 1
        try:
            if user is not None:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            try:
                answer: object = action()
            except OSError as error:
                answer = OSError(error.errno or ENOTRECOVERABLE, os.strerror(error.errno or ENOTRECOVERABLE))
            with open(theirs, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
            code = 0
        finally:
            os._exit(code)

    def result(self) -> Any:
        with open(self._answer, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with status {status}"
        answer = pickle.loads(raw)
        if isinstance(answer, OSError):
            raise answer
        return answer


def as_user(action: Callable[[], Any], user: int = 1000) -> Any:
    """Run `action` in a child with no more rights than `user` has."""
    return Child(action, user).result()


def in_child(action: Callable[[], Any]) -> Any:
    return Child(action).result()


_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_DUMPABLE = 4


def own_mount_namespace() -> None:
    """From here on this process and its children see mounts of their own. For a child that is forked to end soon."""
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))


def own_user_namespace() -> None:
    """From here on this process is root of a user namespace in which nobody else is. For a child, too."""
    user, group = os.getuid(), os.getgid()
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))  # or our own files in /proc are root's
    _checked(_libc.unshare(_CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


@contextmanager
def opened(path: Path | bytes | str, flags: int = os.O_RDWR, mode: int = 0o666) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def tmpfs(place: Path, size: str = "512M") -> Iterator[Path]:
    """What the pool is compared with, mounted with the same restrictions."""
    place.mkdir()
    options = f"size={size},mode=1777,nosuid,nodev"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "sharedfs-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def fails(error: int) -> Iterator[None]:
    """The block ends with an OSError of this errno."""
    with pytest.raises(OSError, match=re.escape(os.strerror(error))) as caught:
        yield
    assert caught.value.errno == error


@contextmanager
def refused() -> Iterator[None]:
    """The block wants a file to be sent (sendfile(2), splice(2)) that may not.

    Linux up to 6.18 passes on our EINVAL, at which programs fall back to read and write; 7.2 makes EIO of it.
    """
    with pytest.raises(OSError, match=r"argument|Input") as caught:
        yield
    assert caught.value.errno in (EINVAL, EIO)


AT_EMPTY_PATH = 0x1000
_STATX_BTIME, _STATX_MTIME = 0x800, 0x40

_libc.linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_libc.name_to_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]


def linkat(fd: int, new: Path) -> None:
    """Give the file of a descriptor a name, as its maker may without reading /proc."""
    _checked(_libc.linkat(fd, b"", AT_FDCWD, os.fsencode(new), AT_EMPTY_PATH))


def link_open_file(fd: int, new: Path) -> None:
    """The same through /proc, for those without CAP_DAC_READ_SEARCH. Python follows the link only with a `dir_fd`."""
    os.link(f"/proc/self/fd/{fd}", new, src_dir_fd=fd, follow_symlinks=True)


def _statx(path: Path, mask: int = _STATX_BTIME) -> bytes:
    found = ctypes.create_string_buffer(256)
    _checked(_libc.statx(AT_FDCWD, os.fsencode(path), 0, mask, found))
    return found.raw


def birth_time(path: Path) -> float | None:
    """The time of birth in seconds, None where the filesystem keeps none."""
    found = _statx(path)
    mask = int.from_bytes(found[0:4], "little")
    seconds, nanoseconds = struct.unpack_from("<qI", found, 80)
    return float(seconds + nanoseconds / 1e9) if mask & _STATX_BTIME else None


def mtime_alone(path: Path) -> tuple[int, int]:
    """mtime in seconds and nanoseconds, asked for without atime, as ls(1) does: FUSE may know only one of them."""
    seconds, nanoseconds = struct.unpack_from("<qI", _statx(path, _STATX_MTIME), 112)
    return seconds, nanoseconds


def statx_attributes(path: Path) -> int:
    return int.from_bytes(_statx(path)[8:16], "little")


def file_handle(path: Path) -> bytes:
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 8 + 128)
    _checked(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.create_string_buffer(4), 0))
    return handle.raw


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    fd: int = _libc.open_by_handle_at(mount_fd, handle, flags)
    _checked(fd)
    return fd


def forget_everything() -> None:
    """Make the kernel drop its inodes and names, so that it sends FORGETs and has to look up everything anew."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
