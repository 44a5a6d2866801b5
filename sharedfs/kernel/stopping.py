"""Stop the threads of other processes for a moment, and let them go on whatever becomes of us: ptrace(2).

The cgroup freezer stops whole cgroups, stays when we die, and on v1 is another hierarchy. SIGSTOP is seen by parents.
A ptrace stop (PTRACE_SEIZE, PTRACE_INTERRUPT) is seen by nobody but us, is one thread's, and ends with the thread that
asked for it: the kernel detaches what a tracer leaves behind, also when it is killed. A system call that a thread
waits in is restarted, as after SIGSTOP and SIGCONT (signal(7)).

A process that is traced already, and some of the kernel's own threads in a process (io_uring), cannot be stopped.
"""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from errno import EPERM

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

# linux/ptrace.h
_DETACH, _GETEVENTMSG, _SEIZE, _INTERRUPT = 17, 0x4201, 0x4206, 0x4207
_TRACE_CHILDREN = 1 << 1 | 1 << 2 | 1 << 3  # PTRACE_O_TRACEFORK, _TRACEVFORK, _TRACECLONE
_EVENTS_OF_CHILDREN = (1, 2, 3)
_WALL = 0x40000000  # __WALL: threads, too
_POLL_SECONDS = 0.0003


class CannotStop(Exception):
    """Somebody cannot be stopped, or not in time; says who."""


class Stopper:
    """Stops processes. For one thread, which is their tracer: they go on with `release`, or when it ends.

    A child or thread that is made by one who is about to stop is stopped, too. Raises CannotStop at `deadline`
    (time.monotonic).
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._running: set[int] = set()
        self._stopped: dict[int, int] = {}  # thread -> the signal that it is to get when it goes on
        self.stopped_at: float | None = None
        """When the first thread was asked to stop."""

    def stop(self, processes: Collection[int]) -> None:
        """All threads of `processes` have stopped when this returns. One that has ended is no error."""
        left = set(processes)
        while left or self._running:
            for process in list(left):
                if not self._seize_new_threads(process):
                    left.discard(process)  # all its threads are ours, and so will be those that they make
            self._wait_for_stops()
            if time.monotonic() > self._deadline:
                raise CannotStop(f"thread {min(self._running, default=0)} did not stop in time")
            if self._running:
                time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """All go on."""
        for thread, pending in self._stopped.items():
            _ptrace(_DETACH, thread, pending)
        self._stopped.clear()

    def _seize_new_threads(self, process: int) -> bool:
        """Whether there was one that is not ours yet."""
        try:
            threads = {int(name) for name in os.listdir(f"/proc/{process}/task")}
        except (FileNotFoundError, ProcessLookupError):
            return False
        new = threads - self._running - self._stopped.keys()
        for thread in new:
            if self.stopped_at is None:
                self.stopped_at = time.monotonic()
            error = _ptrace(_SEIZE, thread, _TRACE_CHILDREN)
            if error == 0 and _ptrace(_INTERRUPT, thread, 0) == 0:
                self._running.add(thread)
            elif error == EPERM and not _is_dying(process, thread):
                raise CannotStop(f"process {process} is traced already, or not to be traced")
        return bool(new)

    def _wait_for_stops(self) -> None:
        for thread in list(self._running):
            try:
                found, status = os.waitpid(thread, os.WNOHANG | _WALL)
            except ChildProcessError:
                self._running.discard(thread)
                continue
            if found == 0:
                continue
            self._running.discard(thread)
            if not os.WIFSTOPPED(status):
                continue  # it has ended
            event = status >> 16
            if event in _EVENTS_OF_CHILDREN:
                child = ctypes.c_ulong()
                _ptrace(_GETEVENTMSG, thread, ctypes.addressof(child))
                if child.value and child.value not in self._stopped:
                    self._running.add(child.value)  # the kernel made it ours, and stops it
            stopped_by = os.WSTOPSIG(status)
            self._stopped[thread] = stopped_by if event == 0 and stopped_by != signal.SIGTRAP else 0


def _ptrace(request: int, thread: int, data: int) -> int:
    """The errno, 0 for none."""
    return ctypes.get_errno() if _libc.ptrace(request, thread, None, data) < 0 else 0


def _is_dying(process: int, thread: int) -> bool:
    """Also if it is gone: the kernel refuses with the same errno."""
    try:
        with open(f"/proc/{process}/task/{thread}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2][:1] in (b"Z", b"X")
    except OSError:
        return True
