"""What names and inodes take: memory of the kernel that no page of a file shows, and a part of a pool's size. Pure.

An empty file takes up to 1.5 KB: its inode in tmpfs, the entry of its name, and the daemon's records of it; extended
attributes come on top by the KiB, where tmpfs counts them (Linux 6.6). One inode for each 64 KiB of the size comes with
the size. Those beyond it take room from the pool's files, and are billed to who made them: those that come with it are
shared evenly, so that who has few pays nothing, whatever others make.
"""

import os
from collections.abc import Mapping

from sharedfs.ledger.tenant import NOBODY

INODE_BYTES = 1536
"""What an inode and its name take of the pool's cgroup: 1.29 to 1.45 KB by the name's length (docs/pages.md)."""
HIDDEN_INODES = 2
"""Those of a pool that tenants do not see: the tmpfs's own root, and removed/."""
_SIZE_PER_INODE = 64 << 10


def shown(pool: os.statvfs_result) -> int:
    """How many inodes a pool has that tenants see, where its tmpfs has a bound and counts them."""
    return pool.f_files - pool.f_ffree - HIDDEN_INODES


def included(size_bytes: int) -> int:
    """How many inodes come with a pool's size."""
    return size_bytes // _SIZE_PER_INODE


def beyond_bytes(size_bytes: int, inodes: int) -> int:
    """What the inodes take that do not come with the size."""
    return max(0, inodes - included(size_bytes)) * INODE_BYTES


def left(size_bytes: int, inodes: int, free_bytes: int) -> int:
    """How many more there may be, with so many bytes of the size left."""
    return max(0, included(size_bytes) - inodes) + max(0, free_bytes) // INODE_BYTES


def billed(size_bytes: int, inodes: int, made_by: Mapping[int, int]) -> dict[int, int]:
    """`beyond_bytes` by maker. What nobody is known to have made, or pays for, is 0's, as if it were another maker.

    Each has an even part of those that come with the size for nothing; what some leave of theirs the others share.
    O(makers log makers).

    >>> billed(4 * (64 << 10), 9, {7: 6, 8: 1})
    {0: 768, 7: 6912}
    """
    unknown = max(0, inodes - sum(made_by.values()))
    counts: dict[int, int] = {**made_by, NOBODY: made_by.get(NOBODY, 0) + unknown}
    if not beyond_bytes(size_bytes, sum(counts.values())):
        return {}
    free_left, makers_left, parts = included(size_bytes), len(counts), dict[int, int]()
    for maker, count in sorted(counts.items(), key=lambda made: (made[1], made[0])):
        free = min(count, free_left // makers_left)
        free_left, makers_left = free_left - free, makers_left - 1
        parts[maker] = (count - free) * INODE_BYTES
    return {maker: part for maker, part in sorted(parts.items()) if part}
