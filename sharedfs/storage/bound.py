"""How much a pool may hold: the least of its size and of what every memory limit at or above its cgroup leaves it.

A limit covers all that is charged below it: the pool's files, pages that were files' and that somebody has pinned, what
its processes use, the kernel's own records of files, and everything that siblings have. What the kernel drops before it
kills anybody (clean page cache) does not count. A reserve stays free, for what the pool's processes may come to need.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sharedfs.linux.memory_limits import Reading

IN_NO_FILE = "pages that are in no file"
INODES = "names and inodes"
"""What bounds a pool a part of whose size they take."""
_NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Bound:
    """`room_bytes` may be charged to the pool from now on, None where no limit says so; negative when there is less
    than the reserve. `bytes` is what its files may hold all together, and `by` what says so: the limit, "size",
    IN_NO_FILE or INODES.
    """

    bytes: int
    by: str
    room_bytes: int | None


def bound(
    size_bytes: int, used_bytes: int, limits: Iterable[Reading], reserve_bytes: int, aside: Mapping[str, int] = _NOTHING
) -> Bound:
    """The bound of a pool of `size_bytes` whose files hold `used_bytes`. Never below what is used, nor above the size.

    `aside` are bytes of the size that something else takes, by what it is.

    >>> bound(512, 10, [Reading("/a", 160, 70)], 64)
    Bound(bytes=36, by='/a', room_bytes=26)
    """
    left_bytes, by = size_bytes, "size"
    aside_bytes = sum(aside.values())
    if aside_bytes:
        left_bytes = min(size_bytes, max(used_bytes, size_bytes - aside_bytes))
        by = max(aside, key=lambda what: aside[what])
    tightest = min(limits, key=lambda limit: limit.free_bytes, default=None)
    if tightest is None:
        return Bound(left_bytes, by, None)
    room_bytes = tightest.free_bytes - reserve_bytes
    bound_bytes = used_bytes + max(0, room_bytes)
    if bound_bytes >= left_bytes:
        return Bound(left_bytes, by, room_bytes)
    return Bound(bound_bytes, tightest.name, room_bytes)
