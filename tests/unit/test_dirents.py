"""Directory entries on their way from getdents64 to a FUSE reply, beside a slow and obvious packing."""

import os
import struct

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.fuse import dirents

Entry = tuple[int, int, int, bytes]
names = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name and b"/" not in name)
listed = st.lists(st.tuples(st.integers(1, 2**63), st.integers(0, 2**63 - 1), st.integers(0, 15), names), min_size=1)


def records_of(entries: list[Entry]) -> bytes:
    """As getdents64(2) leaves them, with what was in the buffer before behind each name."""
    records = b""
    for inode, offset, kind, name in entries:
        length = (19 + len(name) + 1 + 7) & ~7
        record = struct.pack("<QqHB", inode, offset, length, kind) + name + b"\0"
        records += record + os.urandom(length - len(record))
    return records


def slowly_packed(entries: list[Entry]) -> bytes:
    reply = b""
    for inode, offset, kind, name in entries:
        reply += struct.pack("<QQII", inode, offset, len(name), kind) + name + bytes(-len(name) % 8)
    return reply


@given(entries=listed)
def test_all_entries_arrive(entries: list[Entry]) -> None:
    records = records_of(entries)
    starts = dirents.record_starts(records)
    assert list(dirents.entries(records)) == entries
    assert dirents.last_offset(records, starts) == entries[-1][1]
    first = entries[0][0]
    replaced = [(1 if inode == first else inode, *rest) for inode, *rest in entries]
    packed = dirents.fuse_dirents(records, starts, {first: 1})
    assert packed == slowly_packed(replaced)
    assert len(packed) * dirents.PLAIN_PERCENT // 100 <= len(records)
    assert (len(packed) + 128 * len(entries)) * dirents.PLUS_PERCENT // 100 <= len(records)
