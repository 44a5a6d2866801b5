"""Whole bytes divided so that nothing is lost and nothing is made up."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from sharedfs.linux.cgroups import CgroupRef

Key = TypeVar("Key", bound=tuple[object, ...] | str)


def by_path(cgroup: CgroupRef) -> tuple[str, int]:
    """The order in which tenants are listed."""
    return cgroup.path, cgroup.inode


def split(resident_bytes: int, users: Collection[CgroupRef]) -> dict[CgroupRef, int]:
    """Equal shares of one class, in whole bytes, summing to `resident_bytes` (I1). O(users log users).

    Shares differ by one byte at most; the oldest users carry the odd bytes, so that the same books give the same bill
    in whatever order they are read. Nobody is billed when there are no users.

    Raises ValueError for negative bytes or a user named twice.
    """
    if resident_bytes < 0 or not (isinstance(users, frozenset) or len(set(users)) == len(users)):
        raise ValueError(f"cannot split {resident_bytes} bytes among {users}")
    if not users:
        return {}
    share, rest = divmod(resident_bytes, len(users))
    shares = dict.fromkeys(users, share)
    if rest:
        for user in sorted(users)[:rest]:  # by inode number
            shares[user] += 1
    return shares


def apportion(total_bytes: int, weights: Mapping[Key, int]) -> dict[Key, int]:
    """`total_bytes` in proportion to `weights`, summing exactly: the largest remainders get the odd bytes.

    A share that was rounded once for a whole class is so laid out over its parts (files) without being rounded again.
    Ties go by key. Raises ValueError when there is something to give and nobody to give it to.
    """
    whole = sum(weights.values())
    if whole == 0:
        if total_bytes:
            raise ValueError(f"no weight to carry {total_bytes} bytes")
        return dict.fromkeys(weights, 0)
    parts = {key: total_bytes * weight // whole for key, weight in weights.items()}
    odd = total_bytes - sum(parts.values())
    for key in sorted(weights, key=lambda key: (-(total_bytes * weights[key] % whole), key))[:odd]:
        parts[key] += 1
    return parts
