"""Which times a call moves: the same as on tmpfs, side by side."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedfs.ops.data import PURE_PYTHON_VARIABLE
from tests.support.mount import MountedPool
from tests.support.posix import opened

Act = Callable[[Path], object]
OLD_NS = 1_000_000_000


def truncate_opened(size: int) -> Act:
    def act(path: Path) -> None:
        with opened(path, os.O_RDWR) as fd:
            os.ftruncate(fd, size)

    return act


def read_opened(flags: int, *, then: int = 0) -> Act:
    """`then` are flags that are set after it was opened."""

    def act(path: Path) -> None:
        with opened(path, os.O_RDONLY | flags) as fd:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | then)
            os.pread(fd, 4, 0)

    return act


def list_opened(flags: int) -> Act:
    def act(path: Path) -> None:
        with opened(path.parent, os.O_RDONLY | os.O_DIRECTORY | flags) as fd:
            os.listdir(fd)

    return act


ACTS: dict[str, tuple[int, Act]] = {
    "O_TRUNC of an empty file": (0, lambda path: path.open("wb").close()),
    "O_TRUNC": (8, lambda path: path.open("wb").close()),
    "ftruncate of an empty file to 0": (0, truncate_opened(0)),
    "ftruncate to its size": (8, truncate_opened(8)),
    "ftruncate to less": (8, truncate_opened(4)),
    "ftruncate to more": (8, truncate_opened(12)),
    "truncate to its size": (8, lambda path: os.truncate(path, 8)),
    "truncate to less": (8, lambda path: os.truncate(path, 4)),
    "chown to nobody new": (8, lambda path: os.chown(path, -1, -1)),
    "chmod to the mode it has": (8, lambda path: path.chmod(path.stat().st_mode)),
    "pread": (8, read_opened(0)),
    "pread with O_NOATIME": (8, read_opened(os.O_NOATIME)),
    "pread with O_NOATIME by fcntl": (8, read_opened(0, then=os.O_NOATIME)),
    "a listing": (8, list_opened(0)),
    "a listing with O_NOATIME": (8, list_opened(os.O_NOATIME)),
}


def moved(directory: Path, size: int, act: Act) -> dict[str, list[str]]:
    """The times that an act moves, of a file of so many bytes and of its directory."""
    directory.mkdir()
    path = directory / "f"
    path.write_bytes(bytes(size))
    for each in (path, directory):
        os.utime(each, ns=(OLD_NS, OLD_NS))  # so that relatime lets a read count
    before = {each: each.stat() for each in (path, directory)}
    time.sleep(0.02)  # times are as coarse as the kernel's clock tick
    act(path)
    names = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    return {
        each.name: [name for name in names if getattr(each.stat(), name) != getattr(old, name)]
        for each, old in before.items()
    }


@pytest.fixture(params=["C", "Python"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers reads and writes of the pools that a test mounts."""
    if request.param == "Python":
        monkeypatch.setenv(PURE_PYTHON_VARIABLE, "1")


@pytest.mark.usefixtures("engine")
def test_calls_move_the_times_that_they_move_on_tmpfs(pool: MountedPool, plain_tmpfs: Path, unique_name: str) -> None:
    """All of them on one mount, which takes a second."""
    (plain_tmpfs / unique_name).mkdir()
    found, expected = (
        {what: moved(place / what.replace(" ", "-"), size, act) for what, (size, act) in ACTS.items()}
        for place in (pool.path, plain_tmpfs / unique_name)
    )
    assert found == expected


def test_a_cut_by_name_of_an_empty_file_moves_times(pool: MountedPool, plain_tmpfs: Path) -> None:
    """Linux tells the daemon of it as of O_TRUNC."""

    def cut(path: Path) -> None:
        os.truncate(path, 0)

    assert moved(plain_tmpfs / "cut", 0, cut) == {"f": [], "cut": []}
    assert moved(pool.path / "cut", 0, cut) == {"f": ["st_mtime_ns", "st_ctime_ns"], "cut": []}
