"""The version of what outlives a daemon: the mark in the state, who may follow whom, and what keeper and daemon say."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedfs.common.errors import HostFault
from sharedfs.pool import schema
from sharedfs.pool.handoff import Start
from sharedfs.pool.schema import LEAVES, READS, UNMARKED, VERSION, Kept, Word

START = Start("/mnt", "p", "size=1m", True, 2, 40, False, "/pools/p", "/", ("/pools/p",), died=False, reloads=1)


@pytest.fixture
def state_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_new_state_becomes_what_this_package_writes(state_fd: int) -> None:
    schema.check(state_fd)
    schema.take_over(state_fd)
    assert schema.kept_in(state_fd) == Kept(VERSION, LEAVES)


def test_a_state_without_a_mark_is_of_version_1(state_fd: int, tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    assert schema.kept_in(state_fd) == UNMARKED == Kept(1, (1,))
    schema.take_over(state_fd)
    assert schema.kept_in(state_fd) == Kept(VERSION, LEAVES)
    schema.mark(state_fd, 1)
    assert schema.kept_in(state_fd) == UNMARKED


def test_the_next_daemon_of_the_same_package_writes_no_mark(state_fd: int, tmp_path: Path) -> None:
    schema.take_over(state_fd)
    before = (tmp_path / "version").stat().st_ino
    (tmp_path / "version.new").mkdir()  # no mark can be written: the control is that one which is needed fails
    schema.take_over(state_fd)
    assert (tmp_path / "version").stat().st_ino == before
    (tmp_path / "version").unlink()
    with pytest.raises(IsADirectoryError):
        schema.take_over(state_fd)


def test_a_later_state_is_followed_when_its_daemon_can_leave_what_is_read(state_fd: int, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(json.dumps({"version": VERSION + 1, "leaves": [VERSION, VERSION + 1]}))
    schema.check(state_fd)
    with pytest.raises(HostFault, match=f"of version {VERSION + 1}"):
        schema.take_over(state_fd)  # it has not left it
    (tmp_path / "version").write_text(json.dumps({"version": VERSION + 1, "leaves": [VERSION + 1]}))
    with pytest.raises(HostFault, match="install another one"):
        schema.check(state_fd)


@pytest.mark.parametrize(
    ("reads", "version"), [((1, 2), 2), ((2, 3), 2), ((1,), 1), ((3,), None), ((), None), ((1, 3), 1)]
)
def test_a_reader_gets_what_is_there_or_the_latest_that_can_be_left(reads: tuple[int, ...], version: int) -> None:
    assert Kept(2, (1, 2)).for_reader(reads) == version


def test_what_is_said_of_versions_is_understood() -> None:
    word, _, numbers = schema.warm().decode().partition(" ")
    assert (word, schema.read_by(numbers)) == ("warm", READS)
    assert schema.read_by("") == (1,), "a spare of version 1 says the word only"
    message = schema.hand_over(Kept(2, (1, 2)), 1)
    assert schema.is_hand_over(message)
    assert schema.asked_version(message) == 1
    assert schema.hand_over(UNMARKED, 1) == b"hand over", "a daemon of version 1 compares it with this"
    assert schema.asked_version(b"hand over") is None
    assert not schema.is_hand_over(b"end")


def test_words_stay_what_other_versions_say() -> None:
    assert [word.message() for word in Word] == [b"warm", b"pid", b"serving", b"failed", b"hand over", b"end"]
    assert Word.PID.message("12") == b"pid 12"


def test_a_start_is_read_of_an_earlier_and_of_a_later_keeper() -> None:
    told = json.loads(START.message())
    assert Start.read(json.dumps({**told, "of_a_later_keeper": 1}).encode()).message() == START.message()
    del told["died"], told["reloads"]
    earlier = Start.read(json.dumps(told).encode())
    assert (earlier.died, earlier.reloads) == (True, None)
