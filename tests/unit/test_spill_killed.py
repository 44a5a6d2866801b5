"""Spilling is killed at each of its lines, on the way out and on the way back: a file's content is never lost."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sharedfs.accounting.books import Books
from sharedfs.ledger.tenant import NOBODY
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.pages import spill
from sharedfs.pages.spill import Spill
from sharedfs.storage.node import Node
from sharedfs.storage.tmpfs import TREE, PrivateTmpfs, make_tmpfs
from sharedfs.storage.tree import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a private tmpfs takes root")

PAGE = os.sysconf("SC_PAGE_SIZE")
HOLE, SIZE = 5 * PAGE, 9 * PAGE + 17
CONTENT = b"a" * HOLE + bytes(2 * PAGE) + b"b" * (SIZE - HOLE - 2 * PAGE)


class Place:
    """A tmpfs and a directory on disk, both of which outlive whoever works on them."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        mount_fd, root_fd = make_tmpfs(64 << 20)
        os.close(mount_fd)
        self.tmpfs = PrivateTmpfs(root_fd)
        fd = os.open(TREE + b"/f", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.tmpfs.mount_fd)
        for start, part in ((0, CONTENT[:HOLE]), (HOLE + 2 * PAGE, CONTENT[HOLE + 2 * PAGE :])):
            os.pwrite(fd, part, start)
        os.close(fd)

    def start(self) -> tuple[Spill, Node, Books]:
        """What a new daemon has."""
        store, books = Store(self.tmpfs), Books(find_memory_hierarchy(), PAGE, TenantRules("leaf"))
        directory_fd = os.open(self.disk, os.O_RDONLY | os.O_DIRECTORY)
        node, _ = store.lookup(store.node(1), b"f")
        spilled = Spill(directory_fd, store, books)
        if node.inode not in spilled:
            books.pages.charge(node.inode, 0, HOLE, NOBODY)
            books.pages.charge(node.inode, HOLE + 2 * PAGE, SIZE, NOBODY)
        return spilled, node, books

    def pages(self) -> int:
        return os.stat(TREE + b"/f", dir_fd=self.tmpfs.mount_fd).st_blocks * 512 // PAGE

    def content(self) -> bytes:
        fd = os.open(TREE + b"/f", os.O_RDONLY, dir_fd=self.tmpfs.mount_fd)
        try:
            return os.pread(fd, 2 * SIZE, 0)
        finally:
            os.close(fd)


@pytest.fixture
def place(run_dir: Path) -> Iterator[Place]:
    (run_dir / "disk").mkdir()
    made = Place(run_dir / "disk")
    yield made
    made.tmpfs.close()


def killed_after(lines: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that kills itself when it has run so many lines of spill.py; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = lines

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != spill.__file__:
                return None
            if event == "line":
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return trace

        sys.settrace(trace)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_on_the_way_out(place: Place) -> None:
    def spill_it() -> None:
        spilled, node, _ = place.start()
        spilled.write(node, lambda: True)

    lines = 0
    while killed_after(lines, spill_it):
        spilled, node, books = place.start()
        spilled.bring_back(node.inode)
        assert place.content() == CONTENT, lines
        assert not list(place.disk.iterdir()), lines
        assert books.questions.resident_bytes_of(node.inode) == place.pages() * PAGE == 8 * PAGE, lines
        lines += 1
    assert lines > 20
    assert place.pages() == 0
    assert len(list(place.disk.iterdir())) == 1


def test_on_the_way_back(place: Place) -> None:
    spilled, node, books = place.start()

    def bring_it_back() -> None:
        found, node, _ = place.start()
        found.bring_back(node.inode)

    lines, killed = 0, True
    while killed:
        if not spilled.files():
            spilled.write(node, lambda: True)
        assert place.pages() == 0
        killed = killed_after(lines, bring_it_back)
        spilled, node, books = place.start()
        spilled.bring_back(node.inode)
        assert place.content() == CONTENT, lines
        assert books.questions.resident_bytes_of(node.inode) == place.pages() * PAGE == 8 * PAGE, lines
        assert not list(place.disk.iterdir()), lines
        lines += 1
    assert lines > 20


def test_a_copy_that_is_damaged_is_an_error_and_not_an_empty_file(place: Place) -> None:
    spilled, node, _ = place.start()
    spilled.write(node, lambda: True)
    (copy,) = place.disk.iterdir()
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    for _ in range(2):
        with pytest.raises(OSError, match="cut short"):
            spilled.bring_back(node.inode)
        assert place.pages() == 0
    copy.write_bytes(whole)
    spilled.bring_back(node.inode)
    assert place.content() == CONTENT


def test_a_file_that_was_used_meanwhile_stays_in_memory(place: Place) -> None:
    spilled, node, _ = place.start()
    assert spilled.write(node, lambda: False) == 0
    assert node.inode not in spilled
    assert place.content() == CONTENT
    assert not list(place.disk.iterdir())
