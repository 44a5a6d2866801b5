"""What names and inodes take: memory of the kernel that no page of a file shows, and a part of a pool's size. Pure.

An empty file takes up to 1.5 KB: its inode in tmpfs, the entry of its name, and the daemon's records of it; extended
attributes come on top by the KiB, where tmpfs counts them (Linux 6.6). One inode for each 64 KiB of the size comes with
the size. Those beyond it take room from the pool's files, and are billed to who made them.
"""

from collections.abc import Mapping

from sharedfs.ledger.holdings import parted

INODE_BYTES = 1536
"""What an inode and its name take of the pool's cgroup: 1.29 to 1.45 KB by the name's length (docs/pages.md)."""
HIDDEN_INODES = 2
"""Those of a pool that tenants do not see: the tmpfs's own root, and removed/."""
_SIZE_PER_INODE = 64 << 10
_NOBODY = 0


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
    """`beyond_bytes` by maker, in proportion to how many each has made. What nobody is known to have made is 0's.

    >>> billed(64 << 10, 4, {7: 2, 8: 1})
    {0: 1152, 7: 2304, 8: 1152}
    """
    total_bytes = beyond_bytes(size_bytes, max(inodes, sum(made_by.values())))
    if not total_bytes:
        return {}
    unknown = max(0, inodes - sum(made_by.values()))
    weights = {maker: count for maker, count in ((_NOBODY, unknown), *sorted(made_by.items())) if count}
    return {maker: part for maker, part in parted(total_bytes, weights).items() if part}
