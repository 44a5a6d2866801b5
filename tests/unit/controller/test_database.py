"""What is wrong with the controller's database is told as it is: moving a file away that is in order loses data."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from controller.limits.types import Budget
from controller.persistence.database import DamagedDatabase, check_room, unusable
from controller.persistence.state import State, look_up_policy
from sharedfs.common.errors import CallerMistake, HostFault

NAME = "controller.db"


def look(directory: Path) -> None:
    """As `sharedctl run --check` does."""
    check_room(directory)
    look_up_policy(directory / NAME)


def run(directory: Path) -> None:
    """As `sharedctl run` does."""
    state = State(directory)
    try:
        state.set_budget("/tenant", Budget(1 << 20))
    finally:
        state.close()


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", *options, "small", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@needs_root
@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_is_no_damage(tmp_path: Path, begun: bool) -> None:
    with small_disk(tmp_path, "-o", "size=256k"):
        if begun:
            run(tmp_path)
        with (tmp_path / "fill").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        for how in (look, run):
            with pytest.raises(HostFault) as told:
                how(tmp_path)
            assert "mv " not in str(told.value)
            assert "full" in str(told.value)
        (tmp_path / "fill").unlink()
        if begun:
            with closing(State(tmp_path)) as state:
                assert state.budgets() == {"/tenant": Budget(1 << 20)}


@needs_root
def test_a_read_only_directory_is_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        run(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        for how in (look, run):
            with pytest.raises(HostFault, match=r"writ|opened") as told:
                how(tmp_path)
            assert "mv " not in str(told.value)


def test_who_holds_the_database_is_no_damage(tmp_path: Path) -> None:
    run(tmp_path)
    with closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with closing(sqlite3.connect(tmp_path / NAME, timeout=0)) as database:
            with pytest.raises(sqlite3.OperationalError) as busy:
                database.execute("BEGIN IMMEDIATE")
            assert "in use by another program" in str(unusable(tmp_path / NAME, busy.value))


@pytest.mark.parametrize("what", ["directory", "dangling link", "fifo"])
def test_what_is_no_file_is_told_and_left(tmp_path: Path, what: str) -> None:
    path = tmp_path / NAME
    {
        "directory": path.mkdir,
        "dangling link": lambda: path.symlink_to("/nowhere/x"),
        "fifo": lambda: os.mkfifo(path),
    }[what]()
    before = path.lstat()
    for how in (look, run):
        with pytest.raises(CallerMistake, match=f"{NAME} is ") as told:
            how(tmp_path)
        assert "\n" not in str(told.value)
    assert path.lstat().st_mode == before.st_mode


def truncated(path: Path) -> None:
    os.truncate(path, 4096)


def random(path: Path) -> None:
    path.write_bytes(b"no database" * 500)


def other_schema(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE policy (x)")
        database.execute("CREATE TABLE budget (x)")


@pytest.mark.parametrize("damage", [truncated, random, other_schema])
def test_damage_is_told_as_damage(tmp_path: Path, damage: object) -> None:
    run(tmp_path)
    for file in tmp_path.glob(f"{NAME}-*"):
        file.unlink()
    assert callable(damage)
    damage(tmp_path / NAME)
    for how in (look, run):
        with pytest.raises(DamagedDatabase, match="mv "):
            how(tmp_path)
    assert (tmp_path / NAME).exists()
