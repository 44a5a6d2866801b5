"""What a test of filesystem behaviour needs: children that do a thing as somebody else, and calls that `os` lacks."""

import ctypes
import os
import pickle
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOTRECOVERABLE
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
