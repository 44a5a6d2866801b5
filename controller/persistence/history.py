"""Who paid for how much, kept: byte-seconds by tenant and pool, in SQLite.

Minutes first; the minutes beyond the newest MINUTES_KEPT become hours, of which the newest HOURS_KEPT stay. Both are
counted and not compared with the clock, so a step of the clock puts a stamp in the wrong place and loses nothing; how
long something lasted comes from a clock that nobody sets (`billing.meter`).

A database of its own: when its disk is full or the file damaged, settlement and the journal go on. What cannot be
written stays with the caller until it can.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from controller.billing.usage import Account, Usage

log = logging.getLogger(__name__)

DATABASE = "history.db"
MINUTE, HOUR = 60, 3600
MINUTES_KEPT = 180
HOURS_KEPT = 24 * 90
MOST_ROWS = 500_000
"""About 50 MiB. Beyond it the oldest hours go, however few there are."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    span INTEGER NOT NULL,   -- seconds: 60 or 3600
    start INTEGER NOT NULL,  -- seconds since 1970, by the clock of the host at that time
    tenant TEXT NOT NULL,    -- '' for what nobody paid for
    pool TEXT NOT NULL,
    covered_ms INTEGER NOT NULL,
    share_byte_seconds INTEGER NOT NULL,
    used_byte_seconds INTEGER NOT NULL,
    PRIMARY KEY (span, start, tenant, pool)
) STRICT, WITHOUT ROWID;
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET covered_ms = covered_ms + excluded.covered_ms,
    share_byte_seconds = share_byte_seconds + excluded.share_byte_seconds,
    used_byte_seconds = used_byte_seconds + excluded.used_byte_seconds
"""
_ROLL_UP = """
INSERT INTO usage
SELECT 3600, start / 3600 * 3600, tenant, pool, sum(covered_ms), sum(share_byte_seconds), sum(used_byte_seconds)
FROM usage WHERE span = 60 AND start <= :start GROUP BY 1, 2, 3, 4
ON CONFLICT DO UPDATE SET covered_ms = covered_ms + excluded.covered_ms,
    share_byte_seconds = share_byte_seconds + excluded.share_byte_seconds,
    used_byte_seconds = used_byte_seconds + excluded.used_byte_seconds
"""
_SURPLUS = "SELECT DISTINCT start FROM usage WHERE span = ? ORDER BY start DESC LIMIT 1 OFFSET ?"


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """`tenant` is None for what nobody paid for. `covered_seconds`: how long a bill was known."""

    tenant: str | None
    pool: str
    first: int
    covered_seconds: float
    share_byte_seconds: int
    used_byte_seconds: int


class History:
    """Calls block on the disk; one thread at a time. Of a disk that does not take what is written it warns once."""

    def __init__(self, directory: Path, wall: Callable[[], float] = time.time) -> None:
        self._path = directory / DATABASE
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        self._rest: dict[Account, tuple[int, int]] = {}
        self._complaint: str | None = None
        self._rolled_up: int | None = None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def write(self, usage: Mapping[Account, Usage]) -> bool:
        """Add `usage` to the present minute, all of it or nothing; whether that was done."""
        minute = int(self._wall()) // MINUTE * MINUTE
        rows, rest = self._rows(minute, usage)
        try:
            database = self._open()
            database.execute("BEGIN IMMEDIATE")
            with database:
                database.executemany(_ADD, rows)
                if self._rolled_up != minute:
                    self._tidy(database)
        except (sqlite3.Error, OSError) as error:
            self._complain(error)
            return False
        self._rest, self._rolled_up, self._complaint = rest, minute, None
        return True

    def read(self, since_seconds: float | None, tenant: str | None) -> list[HistoryLine]:
        """Totals by tenant and pool of the last `since_seconds`, or of all that is kept. Raises sqlite3.Error."""
        first = 0 if since_seconds is None else int(self._wall() - since_seconds) // MINUTE * MINUTE
        lines = self._open().execute(
            "SELECT nullif(tenant, ''), pool, min(start), sum(covered_ms) / 1000.0, sum(share_byte_seconds),"
            " sum(used_byte_seconds) FROM usage WHERE start + span > ? AND (? IS NULL OR tenant = ?)"
            " GROUP BY tenant, pool ORDER BY 5 DESC, 1, 2",
            (first, tenant, tenant),
        )
        return [HistoryLine(*line) for line in lines]

    def _rows(
        self, minute: int, usage: Mapping[Account, Usage]
    ) -> tuple[list[tuple[int, int, str, str, int, int, int]], dict[Account, tuple[int, int]]]:
        """Whole byte-seconds for the table, and the milliseconds' rest for the next time."""
        rows, rest = [], dict(self._rest)
        for (tenant, pool), amount in usage.items():
            share_rest, used_rest = rest.pop((tenant, pool), (0, 0))
            share, share_rest = divmod(amount.share + share_rest, 1000)
            used, used_rest = divmod(amount.used + used_rest, 1000)
            rows.append((MINUTE, minute, tenant, pool, amount.covered_ms, share, used))
            if share_rest or used_rest:
                rest[tenant, pool] = share_rest, used_rest
        return rows, rest

    def _tidy(self, database: sqlite3.Connection) -> None:
        """Minutes that are many become hours; hours that are many go."""
        for (start,) in database.execute(_SURPLUS, (MINUTE, MINUTES_KEPT)).fetchall():
            database.execute(_ROLL_UP, {"start": start})
            database.execute("DELETE FROM usage WHERE span = 60 AND start <= ?", (start,))
        kept = HOURS_KEPT
        for (start,) in database.execute(_SURPLUS, (HOUR, kept)).fetchall():
            database.execute("DELETE FROM usage WHERE span = 3600 AND start <= ?", (start,))
        while database.execute("SELECT count(*) FROM usage").fetchone()[0] > MOST_ROWS and kept:
            kept //= 2
            for (start,) in database.execute(_SURPLUS, (HOUR, kept)).fetchall():
                database.execute("DELETE FROM usage WHERE span = 3600 AND start <= ?", (start,))

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")  # a crash of the host may cost the last seconds
                database.executescript(_SCHEMA)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _complain(self, error: Exception) -> None:
        complaint = f"{self._path}: {error}: the history is kept in memory until it can be written"
        if complaint != self._complaint:
            log.warning("%s", complaint)
            self._complaint = complaint
