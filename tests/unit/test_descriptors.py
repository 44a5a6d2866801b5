"""The cache of descriptors: bounded, first in first out, and steady when another thread discards."""

import os
import threading

import pytest

from sharedfs.storage import fd_cache
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.node import Node


class Opener:
    """Stands for open_by_handle_at: any descriptor will do. `made` are those that were opened, in order."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, _node: Node) -> int:
        self.made.append(os.open("/dev/null", os.O_RDONLY))
        return self.made[-1]


@pytest.fixture
def opener() -> Opener:
    return Opener()


def node(inode: int) -> Node:
    return Node(inode, b"")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_oldest_makes_room(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fd_cache, "_PUT_ASIDE", 2)
    cache = Descriptors(opener, 3)
    first = [cache.get(node(inode)) for inode in (1, 2, 3)]
    assert [cache.get(node(inode)) for inode in (1, 2, 3)] == first
    assert len(opener.made) == 3
    cache.get(node(4))
    assert all(map(is_open, first)), "whoever was given the oldest may be at work with it"
    assert cache.get(node(2)) == first[1]
    assert cache.get(node(1)) == first[0], "and may get it back"
    assert len(opener.made) == 4
    for inode in (5, 6):
        cache.get(node(inode))
    assert sum(map(is_open, opener.made)) == 5, "the one that lost its place first is closed"
    cache.discard(4)
    cache.discard(4)
    cache.discard(1)
    cache.make_room()
    assert not any(map(is_open, opener.made))


def test_room_is_made_for_a_process_without_descriptors(opener: Opener) -> None:
    cache = Descriptors(opener, 4)
    for inode in range(1, 7):
        cache.get(node(inode))
    cache.make_room()
    assert not any(map(is_open, opener.made))
    cache.get(node(6))
    assert len(opener.made) == 7


def test_discards_from_another_thread(opener: Opener) -> None:
    cache = Descriptors(opener, 8)
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
    assert not any(map(is_open, opener.made))


def test_a_descriptor_that_is_renewed_keeps_its_number(opener: Opener) -> None:
    """Whoever was given it goes on with it."""
    cache = Descriptors(opener, 1)
    fd = cache.get(node(1))
    cache._opener = lambda _: os.open("/dev/null", os.O_RDWR)
    cache.renew(node(1))
    assert cache.get(node(1)) == fd
    assert os.write(fd, b"x") == 1
    assert not os.get_inheritable(fd)
    cache.get(node(2))
    cache._opener = opener
    cache.renew(node(1))  # also where it has lost its place
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    cache.renew(node(3))
    cache.make_room()
    assert not is_open(fd)
