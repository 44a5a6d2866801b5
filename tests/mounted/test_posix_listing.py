"""Directory listings: complete, with "." and "..", from the start again, and steady while entries come and go."""

import contextlib
import ctypes
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.posix import Child

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
for _function in (_libc.readdir64, _libc.rewinddir, _libc.closedir, _libc.telldir):
    _function.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class _Entry(ctypes.Structure):
    _fields_ = [
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


_libc.readdir64.restype = ctypes.POINTER(_Entry)


class Listing:
    """opendir(3) as C programs use it."""

    def __init__(self, stream: int) -> None:
        self.stream = stream

    def next(self) -> tuple[str, int, int] | None:
        """(name, inode, type) of one entry, None at the end."""
        found = _libc.readdir64(self.stream)
        return (os.fsdecode(found[0].name), found[0].inode, found[0].kind) if found else None

    def rest(self) -> list[str]:
        names = []
        while (entry := self.next()) is not None:
            names.append(entry[0])
        return names


@contextmanager
def listing(place: Path) -> Iterator[Listing]:
    stream = _libc.opendir(os.fsencode(place))
    assert stream
    try:
        yield Listing(stream)
    finally:
        _libc.closedir(stream)


def test_dot_and_dot_dot_and_types(place: Path) -> None:
    (place / "d").mkdir()
    (place / "f").write_bytes(b"")
    (place / "s").symlink_to("f")
    os.mkfifo(place / "p")
    with listing(place) as entries:
        found = {}
        while (entry := entries.next()) is not None:
            found[entry[0]] = entry[1:]
    kinds = {"d": stat.S_IFDIR, "f": stat.S_IFREG, "s": stat.S_IFLNK, "p": stat.S_IFIFO}
    assert set(found) == {".", "..", *kinds}
    for name, kind in kinds.items():
        assert found[name] == (os.lstat(place / name).st_ino, kind >> 12)
    assert found["."] == (place.stat().st_ino, stat.S_IFDIR >> 12)
    assert found[".."] == (place.parent.stat().st_ino, stat.S_IFDIR >> 12)


@pytest.fixture
def many(place: Path) -> Path:
    for number in range(3000):
        os.close(os.open(place / f"entry-{number:04}", os.O_CREAT | os.O_WRONLY))
    return place


def test_three_thousand_entries(many: Path) -> None:
    expected = {f"entry-{number:04}" for number in range(3000)}
    assert set(os.listdir(many)) == expected
    with listing(many) as entries:
        first = entries.rest()
        assert len(first) == 3002
        assert set(first) == expected | {".", ".."}
        (many / "later").write_bytes(b"")
        _libc.rewinddir(entries.stream)
        assert len(entries.rest()) == 3003, "rewinding sees what is there now"
    with listing(many) as entries:
        head = [entries.next() for _ in range(1500)]
        middle = _libc.telldir(entries.stream)
        tail = entries.rest()
        _libc.seekdir(entries.stream, middle)
        assert entries.rest() == tail
        assert len(head) + len(tail) == 3003


def test_deleting_while_listing_misses_nothing(many: Path) -> None:
    removed = 0
    with listing(many) as entries:
        while (entry := entries.next()) is not None:
            if entry[0] not in (".", ".."):
                os.unlink(many / entry[0])
                removed += 1
    assert removed == 3000
    assert os.listdir(many) == []
    many.rmdir()


def test_an_entry_that_is_removed_before_it_is_reached_is_left_out(many: Path) -> None:
    with listing(many) as entries:
        assert entries.next() is not None
        for entry in list(os.scandir(many)):
            os.unlink(entry.path)
        late = entries.rest()
        # What was read ahead into the C library's buffer may still come.
        assert len(late) < 2000


def test_what_stays_is_listed_once_while_others_come_and_go(place: Path) -> None:
    """Many portions, and between them another process makes and removes names all the time."""
    stay = {f"stays-{number:05}" for number in range(100_000)}
    for name in stay:
        os.mkdir(place / name)  # one request, where making a file takes two

    def come_and_go() -> None:
        deadline, number = time.monotonic() + 3, 0
        while time.monotonic() < deadline:
            for step in range(20):
                os.close(os.open(place / f"goes-{number + step}", os.O_CREAT | os.O_WRONLY))
            for step in range(20):
                os.unlink(place / f"goes-{number + step}")
            number += 20

    child = Child(come_and_go)
    for _ in range(5):
        with listing(place) as entries:
            names = [name for name in entries.rest() if name.startswith("stays-")]
        assert len(names) == len(stay)
        assert set(names) == stay
    child.result()
    assert set(os.listdir(place)) == stay


def test_many_directories_are_open_and_read_in_turns(place: Path) -> None:
    """More than the pool keeps descriptors for: each goes on where it was."""
    with contextlib.ExitStack() as streams:
        opened = []
        for number in range(700):
            (place / f"{number}").mkdir()
            for name in "abc":
                (place / f"{number}" / name).mkdir()
            opened.append(streams.enter_context(listing(place / f"{number}")))
        first = [entries.next() for entries in opened]
        assert all(first)
        for entries in opened:
            assert len(entries.rest()) == 4
        for entries in opened:
            _libc.rewinddir(entries.stream)
            assert sorted(entries.rest()) == [".", "..", "a", "b", "c"]
