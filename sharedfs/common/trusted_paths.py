"""Paths that only root (or this user) can change: what others can change is not read, locked, followed or removed.

A path is walked from the root of the host, one name after the other, and each directory and link on the way is checked
before the next name is looked up in it. So nobody can change what was checked before it is used.
"""

import os
import stat
from collections.abc import Iterable
from errno import ELOOP, ENOTDIR
from pathlib import Path

from sharedfs.common.errors import CallerMistake

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS = 40  # as the kernel


def open_trusted(
    directory: str | Path, advice: str, *, make_mode: int | None = None, sticky_is_fine: bool = True
) -> int:
    """An O_PATH descriptor of a directory that only root (or this user) can change, and all above it.

    Links on the way are followed when they belong to root (or this user). `make_mode`: what is missing is made, with
    this mode. `sticky_is_fine`: others may make names in the directory itself when it is sticky. Raises CallerMistake
    with a message that ends with `advice`.
    """
    try:
        return _walk(directory, advice, make_mode, sticky_is_fine)
    except OSError as error:
        raise CallerMistake(f"{directory}: {error.strerror}: {advice}") from None


def check_trusted(directory: str | Path, advice: str) -> bool:
    """Whether a directory is there. Raises CallerMistake when others than root (or this user) can change it."""
    try:
        os.close(_walk(directory, advice, None, sticky_is_fine=False))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CallerMistake(f"{directory}: {error.strerror}: {advice}") from None
    return True


def check_no_links(directory: Path, names: Iterable[str], advice: str) -> None:
    """Raises CallerMistake when a name in a trusted directory is there and is no regular file: a link, for one."""
    for name in names:
        try:
            found = os.stat(directory / name, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(found.st_mode):
            raise CallerMistake(f"{directory / name} is a link, or no file: {advice}")


def _walk(directory: str | Path, advice: str, make_mode: int | None, sticky_is_fine: bool) -> int:
    """Raises OSError where the path leads nowhere."""
    names = [name for name in os.path.join(os.getcwd(), directory).split("/") if name not in ("", ".")]
    names.reverse()
    at, so_far, links = os.open("/", _LOOK | os.O_DIRECTORY), Path("/"), 0
    try:
        while names:
            _check_directory(at, so_far, advice, sticky_is_fine=True)
            name = names.pop()
            below = _look_at(at, name, make_mode if make_mode is None or not names else 0o755)
            if stat.S_ISLNK(os.fstat(below).st_mode):
                links += 1
                target = _target(below, so_far / name, links, advice)
                names += reversed([part for part in target.split("/") if part not in ("", ".")])
                if not target.startswith("/"):
                    continue
                below, so_far, name = os.open("/", _LOOK | os.O_DIRECTORY), Path("/"), ""
            os.close(at)
            at, so_far = below, so_far.parent if name == ".." else so_far / name
        _check_directory(at, so_far, advice, sticky_is_fine=sticky_is_fine)
    except BaseException:
        os.close(at)
        raise
    return at


def _look_at(at: int, name: str, make_mode: int | None) -> int:
    """A descriptor of a name in a directory, whatever it is; it is made as a directory when that is wanted."""
    try:
        return os.open(name, _LOOK, dir_fd=at)
    except FileNotFoundError:
        if make_mode is None:
            raise
        os.mkdir(name, make_mode, dir_fd=at)
        return os.open(name, _LOOK, dir_fd=at)


def _target(link: int, path: Path, links: int, advice: str) -> str:
    """Where a link leads, whose descriptor is closed."""
    try:
        if os.fstat(link).st_uid not in (0, os.geteuid()):
            raise CallerMistake(f"{path} is a symbolic link of another user than root: {advice}")
        if links > MOST_LINKS:
            raise OSError(ELOOP, os.strerror(ELOOP))
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _check_directory(fd: int, path: Path, advice: str, *, sticky_is_fine: bool) -> None:
    """In a sticky directory others can make names, and cannot take away or replace those of root."""
    found = os.fstat(fd)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
    sticky = found.st_mode & stat.S_ISVTX and sticky_is_fine
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky):
        raise CallerMistake(f"{path} can be changed by others than root: {advice}")
