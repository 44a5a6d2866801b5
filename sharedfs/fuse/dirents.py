"""Directory entries: from getdents64(2)'s records to those of a FUSE reply.

The two differ in where the name is, so each name has to be moved. numpy moves those of a whole request at once, four
times as fast as a loop does.
"""

from collections.abc import Iterator
from struct import Struct

import numpy as np

# linux_dirent64: d_ino, d_off, d_reclen, d_type; the name, a zero byte, and anything up to d_reclen, a multiple of 8
_DIRENT64 = Struct("<QqHB")
_NAME_OFFSET = _DIRENT64.size
_KIND_OFFSET = 18
# fuse_dirent: ino, off, namelen, type; the name, padded with zeros to a multiple of 8
_FUSE_NAME_OFFSET = 24

# How many bytes of getdents64 records surely fit in a reply, in percent of its size: the shortest grow most.
PLAIN_PERCENT = 75  # 24 bytes become 32
PLUS_PERCENT = 15  # 24 bytes become 160, with a fuse_entry_out


def entries(records: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Inode number, offset of the next entry, type and name of each record."""
    at = 0
    while at < len(records):
        inode, offset, record_bytes, kind = _DIRENT64.unpack_from(records, at)
        start = at + _NAME_OFFSET
        yield inode, offset, kind, records[start : records.index(b"\0", start)]
        at += record_bytes


def last_offset(records: bytes, starts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> int:
    """Where the entry after the last one is found."""
    return int.from_bytes(records[starts[-1] + 8 : starts[-1] + 16], "little", signed=True)


def record_starts(records: bytes) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    halves = memoryview(records).cast("H")
    starts, at, end = [], 0, len(halves)
    while at < end:
        starts.append(at)
        at += halves[at + 8] >> 1  # d_reclen
    return np.array(starts, np.int64) * 2


def fuse_dirents(
    records: bytes, starts: "np.ndarray[tuple[int], np.dtype[np.int64]]", replaced: dict[int, int]
) -> bytes:
    """The records, not empty, as a READDIR reply has them; inode numbers that are in `replaced` become its values."""
    raw = np.frombuffer(records, np.uint8)
    zeros = np.flatnonzero(raw == 0)
    names = starts + _NAME_OFFSET
    lengths = zeros[np.searchsorted(zeros, names)] - names
    sizes = _FUSE_NAME_OFFSET + (lengths + 7 & ~7)
    ends = np.cumsum(sizes)
    targets = ends - sizes
    reply = np.zeros(int(ends[-1]), np.uint8)

    words, reply_words = raw.view(np.uint64), reply.view(np.uint64)
    inodes = words[starts >> 3]
    for inode, other in replaced.items():
        inodes[inodes == inode] = other
    first = targets >> 3
    reply_words[first] = inodes
    reply_words[first + 1] = words[(starts >> 3) + 1]
    reply_words[first + 2] = lengths.astype(np.uint64) | raw[starts + _KIND_OFFSET].astype(np.uint64) << np.uint64(32)

    before = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    reply[np.repeat(targets + _FUSE_NAME_OFFSET, lengths) + within] = raw[np.repeat(names, lengths) + within]
    return reply.tobytes()
