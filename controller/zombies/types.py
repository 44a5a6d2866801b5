"""What `sharedctl zombies` found, as plain typed data. Sizes are bytes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DyingBelow:
    """What dying cgroups below `cgroup` hold; a bound only where not `exact` (v2, and it hands nothing down)."""

    cgroup: str
    dying: int | None
    shmem_bytes: int
    page_cache_bytes: int
    swap_bytes: int
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    pid: int
    name: str
    cgroup: str
    how: tuple[Literal["holds", "maps"], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A file with pages charged to dying cgroups below `below`: `held_bytes`, or fewer where not `exact`: when the live
    cgroup `below` is charged for shared memory itself, the kernel does not tell the two apart.

    `held_bytes` is None for a SysV segment that nobody has attached: to find out would be to attach it.
    """

    kind: Literal["tmpfs", "memfd", "sysv", "anonymous"]
    path: str
    size_bytes: int
    held_bytes: int | None
    below: tuple[str, ...]
    exact: bool
    users: tuple[User, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zombies:
    """`kernel_bytes` is the least that `dying` cgroups cost beside what is charged to them.

    `hidden_processes`: /proc would not show what they use. `unseen_processes` could not be looked at: they hang.
    """

    cgroup_version: int
    dying: int
    kernel_bytes: int
    groups: tuple[DyingBelow, ...]
    holders: tuple[Holder, ...]
    hidden_processes: int
    unseen_processes: int
