"""Who serves a pool holds a lock on a file in its run-time directory: a name has one keeper, whoever looks.

The lock belongs to the open file and not to a process, so it is held as long as any process has the descriptor: the
keeper, the daemon, or a service manager that keeps it between two keepers.
"""

import fcntl
import os
import shutil
import struct

from sharedfs import places
from sharedfs.errors import CallerMistake

# struct flock for the whole file: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def claim(name: str) -> int:
    """Become the one who serves the pool `name`: a descriptor whose lock lives as long as it is open somewhere.

    Raises CallerMistake when the pool is served.
    """
    directory = places.pool_directory(name)
    places.pools_directory().mkdir(parents=True, exist_ok=True)
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
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
        fd = os.open(places.pool_directory(name) / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def forget(name: str) -> None:
    """Remove the run-time directory of a pool."""
    shutil.rmtree(places.pool_directory(name), ignore_errors=True)
