"""The tables of the controller's database, and whether those of a file are ours and have what this program writes."""

import json
import sqlite3
from contextlib import closing

VERSION = 1
"""Of the tables (`PRAGMA user_version`); 0 before there was one. Whoever changes what a column means raises it."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS budget (
    tenant TEXT PRIMARY KEY, budget_bytes INTEGER NOT NULL,
    report_only INTEGER NOT NULL DEFAULT 0       -- 1: no limit is written
) STRICT;
CREATE TABLE IF NOT EXISTS cap (                  -- pool '': every one that has no cap of its own for the tenant
    tenant TEXT NOT NULL, pool TEXT NOT NULL, number INTEGER NOT NULL, is_percent INTEGER NOT NULL,
    PRIMARY KEY (tenant, pool)
) STRICT;
CREATE TABLE IF NOT EXISTS policy (name TEXT NOT NULL, payer TEXT) STRICT; -- the operator's: one row, or none
CREATE TABLE IF NOT EXISTS journal (
    boot_id TEXT NOT NULL, path TEXT NOT NULL, inode INTEGER NOT NULL,
    found_max INTEGER, found_high INTEGER,       -- NULL is no limit
    wrote_max INTEGER, wrote_high INTEGER,       -- in force when the last order was given
    intended_max INTEGER, intended_high INTEGER, -- what that order was to write
    found_swap INTEGER, wrote_swap INTEGER, intended_swap INTEGER,
    raised TEXT,                                 -- what the guard may write: [[max, high, swap], ...]
    PRIMARY KEY (path, inode)
) STRICT;
CREATE TABLE IF NOT EXISTS debt (
    boot_id TEXT NOT NULL, path TEXT NOT NULL, inode INTEGER NOT NULL,
    since_seconds REAL NOT NULL,                 -- since the host was started
    PRIMARY KEY (path, inode)
) STRICT;
CREATE TABLE IF NOT EXISTS own (                 -- what tenants took on themselves: the rest is inherited
    boot_id TEXT NOT NULL, pool TEXT NOT NULL, path TEXT NOT NULL, inode INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (pool, path, inode)
) STRICT;
CREATE TABLE IF NOT EXISTS need (                -- the most that a cgroup has needed within the hour
    boot_id TEXT NOT NULL, path TEXT NOT NULL, inode INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (path, inode)
) STRICT;
"""
LATER_COLUMNS = {"found_swap": "INTEGER", "wrote_swap": "INTEGER", "intended_swap": "INTEGER", "raised": "TEXT"}
"""Of the journal: added since the first version."""
_KINDS = ("max", "high", "swap")
_LIMITS = [f"{when}_{what}" for when in ("found", "wrote", "intended") for what in _KINDS]
_VALID = {
    "budget": "budget_bytes >= 0",
    "cap": "number >= 0 AND (is_percent = 0 OR number <= 100)",
    "journal": " AND ".join(("inode > 0", "are_limits(raised)", *(f"ifnull({limit}, 0) >= 0" for limit in _LIMITS))),
    "debt": "since_seconds >= 0",
    "own": "bytes >= 0",
    "need": "bytes >= 0",
}


def version_of(database: sqlite3.Connection) -> int:
    found: int = database.execute("PRAGMA user_version").fetchone()[0]
    return found


def check_columns(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError when a table that is there is another program's."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        for (table,) in fresh.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            present = columns_of(database, table)
            missing = columns_of(fresh, table) - present - LATER_COLUMNS.keys()
            if present and missing:
                raise sqlite3.DatabaseError(f"its table {table} has no {', '.join(sorted(missing))}")


def columns_of(database: sqlite3.Connection, table: str) -> set[str]:
    """Empty where there is no such table."""
    return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


def check_rows(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError when a row has what this program does not write. O(rows).

    A table that an earlier version made, without the later columns, is not looked at.
    """
    database.create_function("are_limits", 1, _are_limits, deterministic=True)
    for table, valid in _VALID.items():
        present = columns_of(database, table)
        if present and not (table == "journal" and LATER_COLUMNS.keys() - present):
            found = database.execute(f"SELECT rowid FROM {table} WHERE NOT ({valid}) LIMIT 1").fetchone()
            if found is not None:
                raise sqlite3.DatabaseError(f"row {found[0]} of its table {table} has what cannot be")


def _are_limits(text: str | None) -> bool:
    """Whether it is [[max, high, swap], ...], each null or a number of bytes; or nothing."""
    if text is None:
        return True
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, list) and all(
        isinstance(limits, list) and len(limits) == len(_KINDS) and all(map(_is_limit, limits)) for limits in found
    )


def _is_limit(value: object) -> bool:
    return value is None or (type(value) is int and value >= 0)
