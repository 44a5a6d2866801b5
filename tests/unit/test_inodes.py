"""Whether a descriptor is the only one of a file: the kernel is asked with a lease."""

import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from sharedfs.storage.inodes import is_the_only_one
from tests.support.posix import in_child


@pytest.fixture
def file() -> Path:
    """On a tmpfs, as the files of pools are."""
    return Path(f"/dev/shm/sharedfs-test-{os.getpid()}")


def test_other_descriptors_and_mappings_are_seen(file: Path) -> None:
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        assert is_the_only_one(fd)
        other = os.open(file, os.O_RDONLY)
        assert not is_the_only_one(fd)
        mapping = mmap.mmap(other, mmap.PAGESIZE, prot=mmap.PROT_READ)
        os.close(other)
        assert not is_the_only_one(fd)
        mapping.close()
        assert is_the_only_one(fd)
    finally:
        os.close(fd)
        file.unlink()


def test_who_opens_it_just_then_waits_and_nobody_is_killed(file: Path) -> None:
    """A lease that is broken is told to its holder by a signal, of which one dies by default."""

    def ask_while_others_open() -> int:
        fd = os.open(file, os.O_RDWR | os.O_CREAT)
        over = threading.Event()

        def keep_opening() -> None:
            while not over.is_set():
                os.close(os.open(file, os.O_RDWR))

        opener = threading.Thread(target=keep_opening)
        opener.start()
        end = time.monotonic() + 1
        asked = 0
        while time.monotonic() < end:
            is_the_only_one(fd)
            asked += 1
        over.set()
        opener.join()
        os.close(fd)
        return asked

    try:
        assert in_child(ask_while_others_open) > 100
    finally:
        file.unlink()
