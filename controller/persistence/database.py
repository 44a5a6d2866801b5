"""Whether one of the controller's SQLite files can be used, found out before anything relies on it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sharedfs.common.errors import HostFault


def check_database(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError, with SQLite's own words, for a file that is damaged. O(size)."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))


def check_file(path: Path) -> None:
    """Look at a database without changing anything; one that is not there is in order. Raises HostFault."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            check_database(database)
    except sqlite3.Error as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: sqlite3.Error) -> HostFault:
    """What is lost with a state that cannot be read, and what to do, in a line."""
    return HostFault(
        f"{path} cannot be used ({error}): the operator's budgets and policy, and which limits were lowered, cannot be "
        f"read from it. `mv {path} {path}.damaged`, then `sharedctl restore` puts back the limits that cgroups still "
        "tell of, and budgets are to be set anew"
    )
