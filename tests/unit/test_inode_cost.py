"""What names and inodes take, who is billed for it, and that a daemon that comes back knows who made what."""

import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.storage.inode_cost import INODE_BYTES, beyond_bytes, billed, included, left
from sharedfs.storage.inode_table import NodeTable
from sharedfs.storage.state_files import StateFiles

SIZES, COUNTS = st.integers(1, 1 << 30), st.integers(0, 1 << 20)
MADE_BY = st.dictionaries(st.integers(1, 9), st.integers(1, 1 << 20))


@given(SIZES, COUNTS, MADE_BY)
def test_parts_add_up_and_nobody_pays_for_more_than_it_made(size: int, inodes: int, made_by: dict[int, int]) -> None:
    parts = billed(size, inodes, made_by)
    there = max(inodes, sum(made_by.values()))
    assert sum(parts.values()) == beyond_bytes(size, there)
    assert all(0 < part <= made_by.get(maker, there) * INODE_BYTES for maker, part in parts.items())
    assert set(parts) <= {0, *made_by}


@given(SIZES, COUNTS, MADE_BY)
def test_who_has_few_pays_nothing_whatever_others_make(size: int, inodes: int, made_by: dict[int, int]) -> None:
    """An even part of what comes with the size is each one's; who has more pays no less, but for one left over."""
    parts = billed(size, inodes, made_by)
    even = included(size) // (len(made_by) + 1)
    assert all(maker not in parts for maker, count in made_by.items() if count <= even)
    ascending = sorted(made_by, key=lambda maker: made_by[maker])
    paid = [parts.get(maker, 0) for maker in ascending]
    assert all(more >= less - INODE_BYTES for less, more in pairwise(paid))


@given(SIZES, COUNTS, st.integers(-(1 << 30), 1 << 30))
def test_what_is_left_is_the_most_that_fits(size: int, inodes: int, free: int) -> None:
    """Beside an oracle: one more than is left takes more than is free."""
    more = left(size, inodes, free)
    taken = beyond_bytes(size, inodes + more) - beyond_bytes(size, inodes)
    one_more = beyond_bytes(size, inodes + more + 1) - beyond_bytes(size, inodes)
    assert taken <= max(0, free) < one_more


def test_few_inodes_cost_nothing() -> None:
    assert included(64 << 20) == 1024
    assert billed(64 << 20, 1024, {1: 1024}) == {}
    assert billed(64 << 20, 1025, {1: 1025}) == {1: INODE_BYTES}


def handle_of(inode: int) -> bytes:
    """As tmpfs gives it: lengths, kind, generation, number."""
    return struct.pack("<IiIQ", 12, 1, 5, inode)


STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "forget", "restart", "forget by an earlier version"]), st.integers(2, 60))
)


@given(STEPS)
def test_makers_are_known_to_the_next_daemon(steps: list[tuple[str, int]]) -> None:
    """Beside a dict. An earlier version forgets inodes, and not who made them."""
    with TemporaryDirectory() as place, closing_fd(place) as fd:
        state = StateFiles(fd)
        table, makers = NodeTable(state), dict[int, int]()
        for act, number in steps:
            inode = number << 13  # some to a window, and windows
            match act:
                case "make":
                    table.remember(handle_of(inode))
                    table.made(inode, 1 + number % 3)
                    makers[inode] = 1 + number % 3
                case "forget":
                    table.forget(inode)
                    makers.pop(inode, None)
                case "restart":
                    table.close()
                    table = NodeTable(state)
                case _:
                    table.close()
                    if makers.pop(inode, None) is not None:
                        with open(Path(place) / "generations", "r+b") as generations:
                            generations.seek(4 * inode)
                            generations.write(bytes(4))
                    table = NodeTable(state)
            assert table.made_by == Counter(makers.values())
        table.close()


@contextmanager
def closing_fd(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
