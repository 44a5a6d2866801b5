"""What must outlive the controller, in SQLite: the operator's orders, the journal that I6 rests on, and debts' ages.

The journal has a line for each cgroup whose limits we have touched: what its manager had set when we came, and every
value that may be ours, also those that the guard may write by itself. A line is on disk before the write it tells of
(synchronous=FULL), so whatever instant we die at, the limit then found is either one of ours, and goes back to what was
found, or the manager's new word.

An inode number means the same cgroup only within one boot, so lines of an earlier boot are forgotten. Within it the
number is the cgroup, whatever it is called by now: `path` is its last known name.

The journal's lines are also on the cgroups (`limits/marks.py`): one that is lost with the database is found there.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.limits.marks import Mark, Marks
from controller.limits.types import Budget, Limits, Order
from controller.persistence.database import check_database, check_place, check_version, read_only, unusable
from controller.persistence.state_schema import (
    LATER_COLUMNS,
    SCHEMA,
    VERSION,
    check_columns,
    check_rows,
    columns_of,
    version_of,
)
from sharedfs.common.errors import HostFault
from sharedfs.common.paths import CONTROLLER_DATABASE
from sharedfs.common.units import Part
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Named, for columns that were added later stand last.
_ANNOUNCE = """
INSERT INTO journal (
    boot_id, path, inode, found_max, found_high, wrote_max, wrote_high, intended_max, intended_high,
    found_swap, wrote_swap, intended_swap, raised
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cgroup's line in the journal: its manager's limits, and those that may be ours.

    `raised` are those that the guard may write, the latest first: it knows the one before until it has the latest.
    """

    cgroup: CgroupRef
    found: Limits
    wrote: Limits
    intended: Limits
    raised: tuple[Limits, ...] = ()

    @property
    def ours(self) -> tuple[Limits, ...]:
        return self.wrote, self.intended, *self.raised


def entries_of(marks: Mapping[CgroupRef, Mark]) -> dict[CgroupRef, Entry]:
    """The lines of a journal as cgroups tell of them."""
    return {cgroup: Entry(cgroup, mark.found, mark.found, mark.found, mark.ours) for cgroup, mark in marks.items()}


def look_up_policy(path: Path) -> tuple[str, str | None] | None:
    """As `State.policy`, of a database that is only looked at. Raises as `unusable`."""
    with read_only(path) as database:
        if database is None:
            return None
        check_version(path, version_of(database), VERSION)
        check_columns(database)
        check_rows(database)
        return _policy(database) if columns_of(database, "policy") else None


def _policy(database: sqlite3.Connection) -> tuple[str, str | None] | None:
    row: tuple[str, str | None] | None = database.execute("SELECT name, payer FROM policy").fetchone()
    return row


class State:
    """Calls block on the disk; one thread at a time. Those that change something raise HostFault when they cannot."""

    def __init__(self, directory: Path, boot_id: str | None = None, hierarchy: MemoryHierarchy | None = None) -> None:
        """Opens or makes the database in `directory`. Raises as `unusable` when it cannot be used.

        `hierarchy` is where the cgroups are that the journal's lines are kept on, too; None: on none.
        """
        self._boot_id = _BOOT_ID.read_text().strip() if boot_id is None else boot_id
        path = self.path = directory / CONTROLLER_DATABASE
        self._marks = None if hierarchy is None else Marks(hierarchy, path)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_place(path)
        # Autocommit: a transaction is where the code says `with self._database`, after an explicit BEGIN.
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise unusable(path, error) from error
        try:
            check_database(self._database)
            check_version(path, version_of(self._database), VERSION)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(SCHEMA)
            for table in ("journal", "debt", "own", "need"):
                self._database.execute(f"DELETE FROM {table} WHERE boot_id != ?", (self._boot_id,))
            self._add_missing_columns()
            check_columns(self._database)
            check_rows(self._database)
            self._database.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.Error):
                raise unusable(path, error) from error
            raise

    def _add_missing_columns(self) -> None:
        """A journal of a controller that had no limits of swap, or no guard: it never touched any."""
        present = columns_of(self._database, "journal")
        for column in [name for name in LATER_COLUMNS if name not in present]:
            self._database.execute(f"ALTER TABLE journal ADD COLUMN {column} {LATER_COLUMNS[column]}")

    def close(self) -> None:
        self._database.close()

    def budgets(self) -> dict[str, Budget]:
        """The operator's budgets by tenant path."""
        rows = self._database.execute("SELECT tenant, budget_bytes, report_only FROM budget")
        return {tenant: Budget(budget_bytes, bool(report_only)) for tenant, budget_bytes, report_only in rows}

    def set_budget(self, tenant: str, budget: Budget) -> None:
        row = (tenant, budget.budget_bytes, budget.report_only)
        self._change(("INSERT OR REPLACE INTO budget VALUES (?, ?, ?)", [row]))

    def clear_budget(self, tenant: str) -> None:
        self._change(("DELETE FROM budget WHERE tenant = ?", [(tenant,)]))

    def caps(self) -> dict[tuple[str, str | None], Part]:
        """The operator's caps by tenant path and pool; None: for every pool that has no cap of its own for it."""
        rows = self._database.execute("SELECT tenant, pool, number, is_percent FROM cap")
        return {(tenant, pool or None): Part(number, bool(percent)) for tenant, pool, number, percent in rows}

    def set_cap(self, tenant: str, pool: str | None, part: Part | None) -> None:
        """None takes the cap back."""
        key = (tenant, pool or "")
        self._change(
            ("DELETE FROM cap WHERE tenant = ? AND pool = ?", [key]),
            ("INSERT INTO cap VALUES (?, ?, ?, ?)", [] if part is None else [(*key, part.number, part.is_percent)]),
        )

    def policy(self) -> tuple[str, str | None] | None:
        """The name of the operator's policy, and the path of its payer if it has one; None: the configuration's."""
        return _policy(self._database)

    def set_policy(self, name: str | None, payer: str | None) -> None:
        """`name` None: the configuration's again."""
        rows = [] if name is None else [(name, payer)]
        self._change(("DELETE FROM policy", [()]), ("INSERT INTO policy VALUES (?, ?)", rows))

    def journal(self) -> dict[CgroupRef, Entry]:
        """All lines, and those that a lost database had, as far as cgroups still tell of them."""
        marks = {} if self._marks is None else self._marks.found()
        return entries_of(marks) | self._lines()

    def _lines(self) -> dict[CgroupRef, Entry]:
        rows = self._database.execute(
            "SELECT path, inode, found_max, found_high, found_swap, wrote_max, wrote_high, wrote_swap,"
            " intended_max, intended_high, intended_swap, raised FROM journal"
        )
        entries = (
            Entry(
                CgroupRef(path, inode),
                *(Limits(*limits[:3]), Limits(*limits[3:6]), Limits(*limits[6:])),
                tuple(Limits(*values) for values in json.loads(raised or "[]")),
            )
            for path, inode, *limits, raised in rows
        )
        return {entry.cgroup: entry for entry in entries}

    def debts(self) -> dict[CgroupRef, float]:
        """Since when each cgroup has a debt, by the host's uptime."""
        rows = self._database.execute("SELECT path, inode, since_seconds FROM debt")
        return {CgroupRef(path, inode): since for path, inode, since in rows}

    def keep_debts(self, new: Mapping[CgroupRef, float], paid: Iterable[CgroupRef]) -> None:
        """Debts that began, and cgroups that have none any more."""
        self._change(
            ("DELETE FROM debt WHERE inode = ?", [(cgroup.inode,) for cgroup in (*paid, *new)]),
            (
                "INSERT INTO debt VALUES (?, ?, ?, ?)",
                [(self._boot_id, cgroup.path, cgroup.inode, since) for cgroup, since in new.items()],
            ),
        )

    def announce(
        self, orders: Iterable[tuple[Order, Limits]], raised: Mapping[CgroupRef, tuple[Limits, ...]] | None = None
    ) -> None:
        """On disk before it returns: each order, about to be carried out, with its manager's limits.

        `raised` is what the guard may write.
        """
        orders = list(orders)
        may_write = {
            cgroup: json.dumps([[limits.max_bytes, limits.high_bytes, limits.swap_bytes] for limits in values])
            for cgroup, values in (raised or {}).items()
        }
        rows = [
            (
                self._boot_id,
                *(order.cgroup.path, order.cgroup.inode),
                *(found.max_bytes, found.high_bytes),
                *(order.now.max_bytes, order.now.high_bytes),
                *(order.intended.max_bytes, order.intended.high_bytes),
                *(found.swap_bytes, order.now.swap_bytes, order.intended.swap_bytes),
                may_write.get(order.cgroup),
            )
            for order, found in orders
        ]
        inodes = [(order.cgroup.inode,) for order, _ in orders]
        self._change(("DELETE FROM journal WHERE inode = ?", inodes), (_ANNOUNCE, rows))
        if self._marks is not None:
            for order, found in orders:
                ours = (order.now, order.intended, *(raised or {}).get(order.cgroup, ()))
                self._marks.put(order.cgroup, found, ours)

    def own(self) -> dict[tuple[str, CgroupRef], int]:
        """What tenants took on themselves of each pool."""
        rows = self._database.execute("SELECT pool, path, inode, bytes FROM own")
        return {(pool, CgroupRef(path, inode)): own_bytes for pool, path, inode, own_bytes in rows}

    def needs(self) -> dict[CgroupRef, int]:
        rows = self._database.execute("SELECT path, inode, bytes FROM need")
        return {CgroupRef(path, inode): need_bytes for path, inode, need_bytes in rows}

    def keep_known(self, own: Mapping[tuple[str, CgroupRef], int], needs: Mapping[CgroupRef, int]) -> None:
        """In place of what was kept."""
        own_rows = [(self._boot_id, pool, at.path, at.inode, own_bytes) for (pool, at), own_bytes in own.items()]
        need_rows = [(self._boot_id, at.path, at.inode, need_bytes) for at, need_bytes in needs.items()]
        self._change(
            ("DELETE FROM own", [()]),
            ("INSERT INTO own VALUES (?, ?, ?, ?, ?)", own_rows),
            ("DELETE FROM need", [()]),
            ("INSERT INTO need VALUES (?, ?, ?, ?)", need_rows),
        )

    def forget(self, cgroups: Iterable[CgroupRef]) -> None:
        """Drop the lines of cgroups that are gone, or whose limits are their manager's again."""
        cgroups = list(cgroups)
        if self._marks is not None:
            self._marks.remove(cgroups)
        self._change(("DELETE FROM journal WHERE inode = ?", [(cgroup.inode,) for cgroup in cgroups]))

    def _change(self, *statements: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        """All of them with all their rows, or none."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                for statement, rows in statements:
                    self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            raise HostFault(f"{self.path}: {error}") from error
