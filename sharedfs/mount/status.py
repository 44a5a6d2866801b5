"""`sharedfs status`: what each pool says of itself on its feed. One that is slow is not taken for one that is gone."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sharedfs.api.types import PoolRecord, PoolStatus
from sharedfs.common import paths
from sharedfs.common.terminal import print_table, say
from sharedfs.common.units import format_size
from sharedfs.mount.mounting import ask_status, require_root
from sharedfs.pool import registry
from sharedfs.pool.cgroup import NEVER_KILLED

_ANSWER_SECONDS = 2.0
_ASKED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools of this host that answer, and the records of those that live but do not, and of those that are dead."""

    answering: list[PoolStatus]
    late: list[PoolRecord]
    dead: list[PoolRecord]

    def as_json(self) -> str:
        """`not_answering` is there when there is such a pool: what scripts read as a rule stays as it was."""
        told = {"pools": [pool.model_dump() for pool in self.answering]}
        if self.late:
            told["not_answering"] = [record.model_dump() for record in self.late]
        return json.dumps(told, indent=2)


def of_all_pools() -> Pools:
    """Asks all at once: one that is slow holds up no other."""
    require_root()
    found = Pools([], [], [])
    served: list[PoolRecord] = []
    for record in registry.records():
        (served if registry.is_served(record) else found.dead).append(record)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        answers = threads.map(lambda record: ask_status(record.name, _ANSWER_SECONDS), served)
        for record, status in zip(served, answers, strict=True):
            if status is not None:
                found.answering.append(status)
            elif registry.is_served(record):
                found.late.append(record)
    return found


def show(found: Pools) -> None:
    if not found.answering and not found.late:
        say("no pools: mount one with `sharedfs mount MOUNTPOINT`")
        return
    if found.answering:
        _show_table(found.answering)
    for pool in found.answering:
        _show_remarks(pool)
    for record in found.late:
        say(
            f"{record.name}: the pool at {record.mountpoint} lives but gave no answer within {_ANSWER_SECONDS:.0f} s: "
            f"keeper pid {record.keeper_pid}, cgroup {record.pool_cgroup}; {paths.daemon_log(record.name)} may say why"
        )


def _show_table(found: list[PoolStatus]) -> None:
    rows = []
    for pool in found:
        others = sum(count for kind, count in pool.requests.items() if kind not in ("read", "write"))
        counts = (pool.tenants, pool.files, pool.requests["read"], pool.requests["write"], others)
        pids = (pool.restarts, pool.keeper_pid, pool.daemon_pid)
        sizes = (pool.size_bytes, pool.bound_bytes, pool.resident_bytes)
        rows.append(
            (pool.name, pool.mountpoint, pool.flags, pool.data_path, *map(format_size, sizes), *map(str, counts + pids))
        )
    heads = (
        "POOL",
        "MOUNTPOINT",
        "FLAGS",
        "DATA PATH",
        "SIZE",
        "BOUND",
        "RESIDENT",
        "TENANTS",
        "FILES",
        "READS",
        "WRITES",
        "OTHER",
        "RESTARTS",
        "KEEPER",
        "DAEMON",
    )
    print_table(heads, rows, texts=4)


def _show_remarks(pool: PoolStatus) -> None:
    if not pool.data_path.has_passthrough:
        say(f"{pool.name}: {pool.mmap}")
    elif pool.mapping_records_lost is None:
        say(f"{pool.name}: what is mapped for less than half a second is not billed: no perf events here")
    elif pool.mapping_records_lost:
        say(f"{pool.name}: records of mappings were lost {pool.mapping_records_lost} times: there were too many")
    if pool.bound_bytes < pool.size_bytes:
        say(f"{pool.name}: its files may hold {format_size(pool.bound_bytes)}: bounded by {pool.bounded_by}")
    if pool.detached_bytes:
        held = format_size(pool.detached_bytes)
        say(f"{pool.name}: {held} are in no file any more: processes hold the pages in pipes or io_uring, and pay")
    if pool.inode_bytes:
        taken = format_size(pool.inode_bytes)
        say(f"{pool.name}: names and inodes take {taken} of its size, beyond one inode for each 64 KiB")
    if pool.hides_limits:
        say(f"{pool.name}: limits above are not visible: give the pool a limit of its own that they leave room for")
    if pool.oom_score_adj > NEVER_KILLED:
        say(f"{pool.name}: the kernel may kill it when memory is short: its processes lack CAP_SYS_RESOURCE")
    if pool.deleted_files:
        say(f"{pool.name}: deleted {_files(pool.deleted_files, pool.deleted_bytes)} that nobody used any more")
    if pool.spilled_files or pool.brought_back_files:
        on_disk = _files(pool.spilled_files, pool.spilled_bytes)
        say(f"{pool.name}: spilled to disk {on_disk} that nobody uses; {pool.brought_back_files} came back")
    if pool.unseen_processes:
        named = ", ".join(f"{process} in {cgroup}" for process, cgroup in pool.unseen.items())
        more = ", ..." if pool.unseen_processes > len(pool.unseen) else ""
        say(
            f"{pool.name}: {pool.unseen_processes} processes cannot be looked at, what they map stays as it was: "
            f"{named}{more}"
        )
    if pool.recharge_refusal:
        stranded = format_size(pool.stranded_bytes)
        say(f"{pool.name}: {stranded} stay charged to removed cgroups for now: {pool.recharge_refusal}")


def _files(count: int, size_bytes: int) -> str:
    return f"{count} file{'' if count == 1 else 's'} ({format_size(size_bytes)})"
