"""What /proc says of other processes: a thread's cgroups, and which parts of which files a process maps.

Every reader takes a task that may die at any moment; a task that is gone is an empty answer, never an error.

Whoever reads maps, pagemap, stat, cwd, root, exe, the links in fd and ns, and others waits while the process executes a
program, which can be for ever: see `linux/looker.py`. Nobody waits for cgroup, mountinfo, comm, status and cmdline.

A process whose main thread has ended (pthread_exit) goes on, but /proc/PID shows no memory, no files and, on cgroup v1,
no cgroup of it: /proc/PID/task/TID of a thread that lives does. `living_task` finds one.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EACCES, EINVAL, ENAMETOOLONG, EPERM, ESRCH

from sharedfs.common.units import PAGE_BYTES

_GONE = (FileNotFoundError, ProcessLookupError)
_CGROUP_TEXT_BYTES = 16384  # one line a hierarchy, as a rule far shorter than PATH_MAX
_LONGEST_CGROUP_TEXT_BYTES = 1 << 20


def open_thread_cgroup(thread_id: int) -> int | None:
    """As `open_cgroup`."""
    return open_cgroup(f"/proc/{thread_id}")


def open_cgroup(task: str) -> int | None:
    """A descriptor of a thread's cgroup file in its directory in /proc, None when the thread is gone.

    It belongs to that thread and not to its number: reading it after the thread's death fails, even when the number is
    another's by then, and it shows a move to another cgroup at once. Reading takes 4 us, opening anew 14 us.
    """
    try:
        return os.open(f"{task}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except _GONE:
        return None


def read_thread_cgroup(fd: int) -> bytes | None:
    """The text of an `open_thread_cgroup` descriptor now, None when its thread is gone.

    Empty where the kernel does not tell: a path of its cgroups is longer than PATH_MAX.
    """
    try:
        text = os.pread(fd, _CGROUP_TEXT_BYTES, 0)
        return text if len(text) < _CGROUP_TEXT_BYTES else os.pread(fd, _LONGEST_CGROUP_TEXT_BYTES, 0)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno != ENAMETOOLONG:
            raise
        return b""


def living_task(process_id: int) -> str | None:
    """Where /proc shows a process's memory, files and cgroup; None when the process has ended.

    This is /proc/PID while the main thread lives, and then the directory of the oldest thread that lives. The kernel
    charges the process's memory in the same order: to the main thread's cgroup while that lives (mm_update_next_owner()
    in kernel/exit.c).
    """
    directory = f"/proc/{process_id}"
    if not has_ended(directory):
        return directory
    try:
        threads = sorted(int(name) for name in os.listdir(f"{directory}/task"))
    except _GONE:
        return None
    tasks = (f"{directory}/task/{thread}" for thread in threads)
    return next((task for task in tasks if not has_ended(task)), None)


def has_ended(task: str) -> bool:
    """Whether the thread of a directory in /proc has, reaped or not; of a process's, its main thread."""
    fields = _stat_fields(task)
    return fields is None or fields[0] in (b"Z", b"X")


def _stat_fields(task: str) -> list[bytes] | None:
    """What follows the name in a task's stat: the state, which is the third field, comes first."""
    try:
        with open(f"{task}/stat", "rb", buffering=0) as stat:
            return stat.readall().rpartition(b") ")[2].split()
    except _GONE:
        return None


@dataclass(frozen=True, slots=True)
class Process:
    """A process whose id may be another's later: `started` (clock ticks since boot) tells the two apart."""

    id: int
    started: int


def process_faults(process_id: int) -> tuple[Process, int] | None:
    """Which process has this id, and how many page faults its threads have had; None when there is none."""
    fields = _stat_fields(f"/proc/{process_id}")
    return None if fields is None else (Process(process_id, int(fields[19])), int(fields[7]) + int(fields[9]))


def process_with(process_id: int) -> Process | None:
    found = process_faults(process_id)
    return None if found is None else found[0]


def effective_user(thread_id: int) -> int | None:
    """The user id that a thread acts with, as this user namespace numbers it; None when there is no such thread.

    0 is the root of the host, and no root of another user namespace. Never waits.
    """
    try:
        with open(f"/proc/{thread_id}/status", "rb", buffering=0) as status:
            lines = status.readall().splitlines()
    except _GONE:
        return None
    return next((int(line.split()[2]) for line in lines if line.startswith(b"Uid:")), None)


def identity(process_id: int) -> int | None:
    """A number that no other process with this id has or had; None when there is no such process. Never waits.

    A later process has a larger one. Before Linux 6.9 the kernel does not tell: it is the same for all.
    """
    try:
        fd = os.pidfd_open(process_id)
    except OSError as error:
        if error.errno not in (ESRCH, EINVAL):
            raise
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def cgroup_of(task: str) -> bytes | None:
    """As `read_thread_cgroup`, of a task's directory in /proc."""
    fd = open_cgroup(task)
    if fd is None:
        return None
    try:
        return read_thread_cgroup(fd)
    finally:
        os.close(fd)


def process_cgroup(process_id: int) -> bytes | None:
    """As `read_thread_cgroup`, of the task that stands for a process (`living_task`)."""
    task = living_task(process_id)
    return None if task is None else cgroup_of(task)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps: `start`..`end` map a file from byte `offset` on, `shared` or private."""

    start: int
    end: int
    shared: bool
    offset: int
    inode: int

    def page_at(self, address: int) -> int:
        """The number of the file's page at an address of the mapping."""
        return (address - self.start + self.offset) // PAGE_BYTES

    def address_of(self, page: int) -> int:
        """The other way round."""
        return page * PAGE_BYTES - self.offset + self.start

    @property
    def pages(self) -> tuple[int, int]:
        """The pages of the file that are in the mapping, inclusive."""
        return self.page_at(self.start), self.page_at(self.end) - 1


def process_ids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def maps_device(process_id: int, device: tuple[int, int]) -> bool:
    """Whether a process maps any file on `device` (major, minor). As `task_maps`."""
    _, text = task_maps(process_id)
    return re.search(rb"^\S+ \S+ \S+ %02x:%02x " % device, text, re.MULTILINE) is not None


def task_maps(process_id: int) -> tuple[str, bytes]:
    """The task that shows a process's memory, and the text of its maps.

    No text of a process that is gone, or of a kernel thread.
    """
    task = f"/proc/{process_id}"
    text = _maps_text(task)
    if not text:  # a kernel thread, or one whose main thread has ended
        living = living_task(process_id)
        if living is not None and living != task:
            task, text = living, _maps_text(living)
    return task, text


def _maps_text(task: str) -> bytes:
    try:
        with open(f"{task}/maps", "rb", buffering=0) as maps:
            return maps.readall()
    except OSError as error:
        if isinstance(error, _GONE) or error.errno in (ESRCH, EACCES, EPERM):
            return b""
        raise
