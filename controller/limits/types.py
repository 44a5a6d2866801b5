"""What limits are and what is done about them: plain types and arithmetic, no access to the kernel's files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE
from typing import Protocol

from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel enforces; None is no limit.

    `max_bytes` kills when it cannot reclaim (v1 memory.limit_in_bytes, v2 memory.max), `high_bytes` throttles
    (v2 memory.high), `swap_bytes` bounds what may be in swap beside that (v2 memory.swap.max). v1 has the first only.
    """

    max_bytes: int | None = None
    high_bytes: int | None = None
    swap_bytes: int | None = None

    @property
    def enforced_bytes(self) -> int | None:
        """The one number to show for memory: the hard limit, or the soft one when it is all there is."""
        return self.high_bytes if self.max_bytes is None else self.max_bytes


@dataclass(frozen=True, slots=True)
class Account:
    """A cgroup as the kernel sees it, with all below it.

    `unreclaimable_bytes` is what no reclaim can be counted on to free: all but the page cache on the file LRUs.
    `ceiling_bytes` is what its manager set for memory and swap together, where the kernel has that (v1): the memory
    limit cannot be above it. `swap_usage_bytes` is what it has in swap, where the kernel limits that (v2).
    `peak_bytes` is the kernel's record of usage, 0 where it keeps none.
    """

    limits: Limits
    usage_bytes: int
    unreclaimable_bytes: int
    ceiling_bytes: int | None = None
    swap_usage_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What the operator gives a cgroup; `report_only`: bills tell what is over it, and no limit is written."""

    budget_bytes: int
    report_only: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """Move `cgroup` from the limits it has `now` to those `intended`."""

    cgroup: CgroupRef
    now: Limits
    intended: Limits


@dataclass(frozen=True, slots=True)
class Write:
    """One write to the kernel: `text` into `file`, a name in the cgroup's directory; `before` is in it now."""

    file: str
    text: str
    before: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The limits after an order, None when the cgroup is gone; `refused` says why they are not those intended.

    `writes` counts those that were made.
    """

    limits: Limits | None
    refused: str | None = None
    writes: int = 0


class KernelLimits(Protocol):
    """One version of the memory controller. Its calls block, a lowering one for as long as the kernel reclaims."""

    hierarchy: MemoryHierarchy

    def read(self, cgroup: CgroupRef) -> Account | None:
        """The account of `cgroup`, None when it is gone. Raises HostFault when its files make no sense."""

    def limits(self, cgroup: CgroupRef) -> Limits | None:
        """The limits alone, which is cheap also for a cgroup with many below it. Otherwise as `read`."""

    def writes(self, order: Order) -> tuple[Write, ...]:
        """What `apply` writes, in this order, if nothing keeps it from it."""

    def apply(self, order: Order) -> Outcome:
        """Carry out `order`, unless somebody moved the limits since: then they stay. Doing it twice is harmless."""

    def confirm(self, cgroup: CgroupRef) -> None:
        """The guard wrote the kernel's files: tell a manager that keeps limits itself what is in force."""

    def limit_file(self, cgroup: CgroupRef) -> str:
        """The file in which a manager sets the limit of `cgroup`."""


def is_above(limit: int | None, other: int | None) -> bool:
    return other is not None and (limit is None or limit > other)


def round_up(size_bytes: int) -> int:
    return -(-size_bytes // PAGESIZE) * PAGESIZE


def round_down(size_bytes: int) -> int:
    return size_bytes // PAGESIZE * PAGESIZE


def managers_limits(found: Limits, ours: Sequence[Limits], now: Limits) -> Limits:
    """What the manager set: what was `found`, except where `now` is none of `ours`, which is then its new word."""
    return Limits(
        found.max_bytes if now.max_bytes in {limits.max_bytes for limits in ours} else now.max_bytes,
        found.high_bytes if now.high_bytes in {limits.high_bytes for limits in ours} else now.high_bytes,
        found.swap_bytes if now.swap_bytes in {limits.swap_bytes for limits in ours} else now.swap_bytes,
    )


WriteFile = Callable[[int, str, str], None]
"""Writes text to the named file of the directory open at a descriptor. A fake kernel takes its place in tests."""
