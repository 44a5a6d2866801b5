"""Who serves a pool holds a lock on a file in its run-time directory: a name has one keeper, whoever looks.

The lock belongs to the open file and not to a process, so it is held as long as any process has the descriptor: the
keeper, the daemon, or a service manager that keeps it between two keepers.
"""

import fcntl
import os
import struct
from contextlib import suppress

from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake
from sharedfs.common.trusted_paths import open_trusted

_ADVICE = "choose a SHAREDFS_RUN_DIR that only root can change, or another name"

# struct flock for the whole file: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def claim(name: str) -> int:
    """Become the one who serves the pool `name`: a descriptor whose lock lives as long as it is open somewhere.

    Raises CallerMistake when the pool is served, or when others than root can change its run-time directory.
    """
    directory = paths.pool_directory(name)
    os.close(open_trusted(paths.pools_directory(), _ADVICE, make_mode=0o755))
    while True:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            raise CallerMistake(f"{directory} is no directory: {_ADVICE}") from None
        try:
            if directory.is_symlink():
                raise CallerMistake(f"{directory} is a symbolic link: {_ADVICE}")
            os.close(open_trusted(directory, _ADVICE))
            lock = os.open(directory / paths.POOL_LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # a keeper that ends took its directory away meanwhile
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except BlockingIOError:
            os.close(lock)
            raise CallerMistake(f"a pool named {name} is already mounted: choose another name") from None
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # the lock of a keeper that ended just now, in a directory that is gone


def is_claimed(name: str) -> bool:
    """Whether somebody serves the pool `name`. Looks without getting in anybody's way."""
    try:
        fd = os.open(paths.pool_directory(name) / paths.POOL_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def forget(name: str) -> None:
    """Remove a pool's run-time directory: the files that sharedfs makes there, and then itself if nothing is left."""
    try:
        directory = os.open(paths.pool_directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # it is gone, or was never made by sharedfs
    try:
        # The lock goes last: as long as it is there, nobody else begins to serve the name.
        for file in sorted(os.listdir(directory), key=paths.POOL_LOCK.__eq__):
            if paths.is_of_a_pool(file):
                with suppress(OSError):
                    os.unlink(file, dir_fd=directory)
    finally:
        os.close(directory)
    with suppress(OSError):  # something that sharedfs did not make is in it
        paths.pool_directory(name).rmdir()
