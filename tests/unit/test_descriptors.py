"""The cache of descriptors: bounded, first in first out, and steady when another thread discards."""

import os
import threading
from collections.abc import Iterator

import pytest

from sharedfs.storage import fd_cache
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.node import Node


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stands for open_by_handle_at: any descriptor will do. The ones that were opened, in order."""
    made: list[int] = []

    def open_anything(mount_fd: int, handle: bytes, flags: int) -> int:
        made.append(os.open("/dev/null", os.O_RDONLY))
        return made[-1]

    monkeypatch.setattr(fd_cache.syscalls, "open_by_handle", open_anything)
    return made


def node(inode: int) -> Node:
    return Node(inode, b"")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_oldest_makes_room(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fd_cache, "_PUT_ASIDE", 2)
    cache = Descriptors(0, 0, 3)
    first = [cache.get(node(inode)) for inode in (1, 2, 3)]
    assert [cache.get(node(inode)) for inode in (1, 2, 3)] == first
    assert len(opened) == 3
    cache.get(node(4))
    assert all(map(is_open, first)), "whoever was given the oldest may be at work with it"
    assert cache.get(node(2)) == first[1]
    assert cache.get(node(1)) == first[0], "and may get it back"
    assert len(opened) == 4
    for inode in (5, 6):
        cache.get(node(inode))
    assert sum(map(is_open, opened)) == 5, "the one that lost its place first is closed"
    cache.discard(4)
    cache.discard(4)
    cache.discard(1)
    cache.make_room()
    assert not any(map(is_open, opened))


def test_room_is_made_for_a_process_without_descriptors(opened: list[int]) -> None:
    cache = Descriptors(0, 0, 4)
    for inode in range(1, 7):
        cache.get(node(inode))
    cache.make_room()
    assert not any(map(is_open, opened))
    cache.get(node(6))
    assert len(opened) == 7


def test_discards_from_another_thread(opened: list[int]) -> None:
    cache = Descriptors(0, 0, 8)
    stop = threading.Event()

    def discard() -> None:
        while not stop.is_set():
            for inode in range(1000, 1032):
                cache.discard(inode)

    thread = threading.Thread(target=discard)
    thread.start()
    try:
        for round_number in range(20):
            for inode in range(1000, 1032):
                cache.get(node(inode + round_number % 2))
    finally:
        stop.set()
        thread.join()
        cache.make_room()
    assert not any(map(is_open, opened))
