"""Generations of inodes that the kernel forgot: found again, and gone when the inode is."""

import struct

from sharedfs.generations import Generations


def handle(inode: int, generation: int) -> bytes:
    return struct.pack("<IiIQ", 12, 1, generation, inode)


def test_a_handle_is_made_again() -> None:
    generations = Generations()
    for inode in (5, 1023, 1024, 1 << 40):
        generations.remember(handle(inode, inode % 1000 + 7))
    for inode in (5, 1023, 1024, 1 << 40):
        assert generations.handle(inode) == handle(inode, inode % 1000 + 7)
    assert generations.handle(6) is None
    assert generations.handle(1 << 50) is None
    generations.forget(5)
    assert generations.handle(5) is None
    assert generations.handle(1023) == handle(1023, 30)


def test_nothing_is_kept_of_a_block_without_inodes() -> None:
    generations = Generations()
    for inode in range(3000):
        generations.remember(handle(inode, 1))
        generations.remember(handle(inode, 2))  # forgotten once more
    for inode in range(3000):
        generations.forget(inode)
        generations.forget(inode)
    assert not generations._blocks
    assert not generations._in_use


def test_another_kind_of_handle_is_not_kept() -> None:
    generations = Generations()
    generations.remember(struct.pack("<IiIQ", 12, 2, 7, 5))
    generations.remember(struct.pack("<IiII", 8, 1, 7, 5))
    assert generations.handle(5) is None
