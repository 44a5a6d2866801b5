"""Whether one of the controller's SQLite files can be used, found out before anything relies on it.

Only a file that is damaged is called so: the advice is to move it away, which loses what is in it.
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sharedfs.common.errors import CallerMistake, HostFault

_LEAST_FREE_BYTES = 64 << 10  # for a new database and its log


class DamagedDatabase(CallerMistake):
    """What is in the file cannot be read, and no restart mends it."""


def check_database(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError, with SQLite's own words, for a file that is damaged. O(size)."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))


def check_place(path: Path) -> None:
    """Raises CallerMistake for a path at which no database can be, and SQLite would wait or make one elsewhere."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise CallerMistake(f"{path} is a link to {path.readlink()}, which is not there: remove the link") from None
        return
    if not stat.S_ISREG(mode):
        raise CallerMistake(f"{path} is no regular file: move it away, the controller makes its database there")


def check_room(directory: Path) -> None:
    """Raises HostFault for a directory in which nothing can be written now."""
    if not directory.exists():
        return
    if not os.access(directory, os.W_OK):
        raise HostFault(f"{directory} cannot be written to: mount it writable, or choose another SHAREDFS_STATE_DIR")
    disk = os.statvfs(directory)
    if disk.f_blocks and disk.f_bfree * disk.f_frsize < _LEAST_FREE_BYTES:
        raise HostFault(f"{directory} is on a disk that is full: free some space there")


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A database that was looked at without a change, None for one that is not there. Raises as `unusable`."""
    check_place(path)
    if not path.exists():
        yield None
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            check_database(database)
            yield database
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def check_version(path: Path, found: int, known: int) -> None:
    """Raises CallerMistake for a database that a later version has written."""
    if found > known:
        raise CallerMistake(
            f"{path} is of version {found}, this sharedctl reads {known} and earlier: install the later one again, or "
            f"`mv {path} {path}.later`, and set budgets anew"
        )


def unusable(path: Path, error: sqlite3.Error) -> CallerMistake | HostFault:
    """What is wrong with a database, and what to do, in a line."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:  # the rest of the code says more
        case sqlite3.SQLITE_FULL:
            return HostFault(f"{path}: the disk is full: free some space there")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return HostFault(f"{path} cannot be written to: mount it writable, or mend its permissions ({error})")
        case sqlite3.SQLITE_CANTOPEN:
            return HostFault(f"{path} cannot be opened: look at its permissions and those of {path.parent} ({error})")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return HostFault(f"{path} is in use by another program: end it ({error})")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_NOLFS:
            return HostFault(f"{path}: {error}: look at the disk, whether it is full, and at the kernel's log")
    return DamagedDatabase(
        f"{path} is damaged ({error}): the operator's budgets and policy, and which limits were lowered, cannot be "
        "read from it. `sharedctl restore` puts back the limits that cgroups still tell of. "
        f"Then `mv {path} {path}.damaged`, and set budgets anew"
    )
