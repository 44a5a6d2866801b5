"""Whether any thread of the host has changed its cgroup or ended since we last looked, at the price of a memory access.

The tracepoints cgroup:cgroup_attach_task and sched:sched_process_exit write a record into a perf ring of their CPU.
Nobody reads the records: that a ring's head has moved says enough (perf_event_open(2); `data_head` of a ring that is
mapped read-only moves with every record, and such tracepoints are not throttled). A move of a thread is seen when the
write(2) to cgroup.procs that caused it has returned, an exit before the thread's id can be another's.

Needs CAP_PERFMON and tracefs, which is mounted nowhere for it.
"""

import fcntl
import mmap
import os
import struct
from contextlib import ExitStack
from pathlib import Path

from sharedfs.common.errors import HostFault
from sharedfs.linux import syscalls

_TRACEPOINTS = ("cgroup/cgroup_attach_task", "sched/sched_process_exit")
_ONLINE = Path("/sys/devices/system/cpu/online")

_IOC_SET_OUTPUT = 0x2405
_TYPE_TRACEPOINT = 2
# perf_event_attr, its first version: type, size, config, sample_period (1: every event), sample_type (0: records are
# bare headers), read_format, flags, wakeup_events, bp_type, bp_addr
_ATTR = struct.Struct("<IIQQQQQIIQ")
_RING_BYTES = 2 * mmap.PAGESIZE  # the page that has the head, and one of records
DATA_HEAD, DATA_TAIL = slice(1024, 1032), slice(1032, 1040)  # of struct perf_event_mmap_page


class TaskEvents:
    """The rings of the CPUs that are online. Raises HostFault where the kernel or our rights lack something."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._online = _ONLINE.read_text()
        try:
            tracepoints = _tracepoint_ids()
            self.heads = tuple(self._ring(cpu, tracepoints) for cpu in online_cpus(self._online))
            """Of each CPU the eight bytes that move; their sum never comes back to a value that it had."""
        except OSError as error:
            self._resources.close()
            raise HostFault(f"perf events: {error.strerror}") from error

    def count(self) -> int:
        """A number that rises with every such event. O(CPUs)."""
        count = 0
        for head in self.heads:
            count += head[0]
        return count

    def covers_all_cpus(self) -> bool:
        """Whether no CPU came online or went offline since: events of a new one are not seen."""
        return _ONLINE.read_text() == self._online

    def close(self) -> None:
        """The heads stay readable, and stand still."""
        self._resources.close()

    def _ring(self, cpu: int, tracepoints: list[int]) -> memoryview:
        first, *others = (self._open(cpu, tracepoint) for tracepoint in tracepoints)
        ring = mmap.mmap(first, _RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        for fd in others:
            fcntl.ioctl(fd, _IOC_SET_OUTPUT, first)
        return memoryview(ring)[DATA_HEAD].cast("Q")

    def _open(self, cpu: int, tracepoint: int) -> int:
        attr = _ATTR.pack(_TYPE_TRACEPOINT, _ATTR.size, tracepoint, 1, 0, 0, 0, 0, 0, 0)
        fd = syscalls.perf_event_open(attr, cpu)
        self._resources.callback(os.close, fd)
        return fd


def online_cpus(text: str | None = None) -> list[int]:
    """The numbers in a list such as `0-3,8`; of the CPUs that are online.

    >>> online_cpus("0-2,5")
    [0, 1, 2, 5]
    """
    cpus: list[int] = []
    for part in (_ONLINE.read_text() if text is None else text).strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def _tracepoint_ids() -> list[int]:
    root = syscalls.detached_mount("tracefs", {})
    try:
        ids = []
        for tracepoint in _TRACEPOINTS:
            fd = os.open(f"events/{tracepoint}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
            try:
                ids.append(int(os.read(fd, 32)))
            finally:
                os.close(fd)
        return ids
    finally:
        os.close(root)
