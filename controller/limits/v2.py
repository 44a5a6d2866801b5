"""cgroup v2: memory.max kills when it is written below what can be reclaimed, memory.high only throttles.

So a lowering goes through memory.high first, and memory.max follows only when usage, read immediately before, leaves
a slack at least (settlement aimed for more). Between that reading and the write the tenant may grow, but
not by so much: it is over memory.high by then, and throttled at each return to user space. What cannot follow now
is left as it is for the next settlement: every value written is one that was ordered, so the journal knows it.
A raise goes the other way round.

memory.swap.max takes nothing from anybody when it is written: what is in swap beyond it stays there, and no more comes.
"""

from controller.limits.cgroup_files import CgroupDirectory, carry_out, confirm, open_cgroup, write_file
from controller.limits.types import Account, Limits, Order, Outcome, Write, WriteFile, is_above
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy

MAX, HIGH, CURRENT = "memory.max", "memory.high", "memory.current"
PEAK = "memory.peak"  # since Linux 5.19
SWAP, SWAP_CURRENT = "memory.swap.max", "memory.swap.current"
SLACK_BYTES = 256 << 10
"""memory.max is not lowered when usage, read just before, is nearer than this."""


class LimitsV2:
    def __init__(self, hierarchy: MemoryHierarchy, write: WriteFile = write_file) -> None:
        self.hierarchy = hierarchy
        self._write = write

    def read(self, cgroup: CgroupRef) -> Account | None:
        """As promised; a group without the memory controller (the root, or not enabled) has no limits and no usage."""
        with open_cgroup(self.hierarchy, cgroup, self._write) as directory:
            if directory is None:
                return None
            usage_bytes = directory.number(CURRENT) or 0
            stat = directory.statistics("memory.stat")
            cache_bytes = stat.get("inactive_file", 0) + stat.get("active_file", 0) + stat.get("slab_reclaimable", 0)
            limits = _limits(directory)
            swap_bytes, peak_bytes = directory.number(SWAP_CURRENT) or 0, directory.number(PEAK) or 0
        if not self.hierarchy.lives(cgroup):
            return None
        needed_bytes = max(0, usage_bytes - cache_bytes)
        return Account(limits, usage_bytes, needed_bytes, swap_usage_bytes=swap_bytes, peak_bytes=peak_bytes)

    def limits(self, cgroup: CgroupRef) -> Limits | None:
        with open_cgroup(self.hierarchy, cgroup, self._write) as directory:
            limits = None if directory is None else _limits(directory)
        return limits if self.hierarchy.lives(cgroup) else None

    def writes(self, order: Order) -> tuple[Write, ...]:
        return _writes(order.now, order.intended)

    def apply(self, order: Order) -> Outcome:
        return carry_out(self.hierarchy, order, self._write, _limits, self._move)

    def confirm(self, cgroup: CgroupRef) -> None:
        confirm(self.hierarchy, cgroup, self._write, (MAX, HIGH))

    def limit_file(self, cgroup: CgroupRef) -> str:
        limits = account.limits if (account := self.read(cgroup)) else Limits()
        name = HIGH if limits.max_bytes is None and limits.high_bytes is not None else MAX
        return str(self.hierarchy.directory(cgroup.path) / name)

    def _move(self, directory: CgroupDirectory, now: Limits, intended: Limits) -> str | None:
        refused = None
        for write in _writes(now, intended):
            if write.file == MAX and intended.max_bytes is not None and is_above(now.max_bytes, intended.max_bytes):
                usage_bytes = directory.number(CURRENT) or 0
                if intended.max_bytes < usage_bytes + SLACK_BYTES:
                    continue
            refused = directory.write(write.file, write.text) or refused
        return refused


def _writes(now: Limits, intended: Limits) -> tuple[Write, ...]:
    high, hard, swap = (
        () if after == before else (Write(file, _text(after), _text(before)),)
        for file, before, after in (
            (HIGH, now.high_bytes, intended.high_bytes),
            (MAX, now.max_bytes, intended.max_bytes),
            (SWAP, now.swap_bytes, intended.swap_bytes),
        )
    )
    memory = hard + high if is_above(intended.max_bytes, now.max_bytes) else high + hard
    # More room in swap helps a lowering of memory; less of it is for afterwards.
    return swap + memory if is_above(intended.swap_bytes, now.swap_bytes) else memory + swap


def _limits(directory: CgroupDirectory) -> Limits:
    return Limits(directory.number(MAX), directory.number(HIGH), directory.number(SWAP))


def _text(limit: int | None) -> str:
    return "max" if limit is None else str(limit)
