"""SQLite: its locks, its journals and, in WAL mode, its shared memory, with several processes that write."""

import sqlite3
from pathlib import Path

import pytest

from tests.support.posix import Child

WRITERS, ROWS = 3, 60


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_several_processes_write(place: Path, mode: str) -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(place / "db", timeout=60, isolation_level=None)

    def insert(worker: int) -> None:
        connection = connect()
        for number in range(ROWS):
            connection.execute("begin immediate")
            connection.execute("insert into t values (?, ?, randomblob(3000))", (worker, number))
            if number % 5 == 4:
                connection.execute("rollback")
            else:
                connection.execute("commit")
        connection.close()

    connection = connect()
    assert connection.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
    connection.execute("create table t (worker, number, data)")
    children = [Child(lambda worker=worker: insert(worker)) for worker in range(WRITERS)]
    for child in children:
        child.result()
    rows = connection.execute("select worker, count(distinct number) from t group by worker order by 1").fetchall()
    assert rows == [(worker, ROWS * 4 // 5) for worker in range(WRITERS)]
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.execute("delete from t where number % 2")
    connection.execute("vacuum")
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
