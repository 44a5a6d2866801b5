"""The keeper's children: the spare that forks, the daemon that serves, and what a daemon that was killed leaves."""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sharedfs.linux import procfs
from sharedfs.pool import schema
from sharedfs.pool.cgroup import PoolCgroup
from sharedfs.pool.handoff import MESSAGE_BYTES
from sharedfs.supervisor.fd_store import exec_with

_LEFTOVER_SECONDS, _POLL_SECONDS = 1.0, 0.002
_LOOKERS = {name.encode() for name in schema.LOOKER_MODULES}


@dataclass(eq=False)
class Child:
    """A child of the keeper, or a process that becomes one: its end of the link is closed when it dies."""

    link: socket.socket
    process_id: int = 0
    serves_since: float | None = None
    failure: tuple[int, str] | None = None
    reads: tuple[int, ...] | None = None
    """Of a spare that is ready: the versions of the state that its daemons can continue."""

    def tell(self, message: bytes) -> None:
        with suppress(ConnectionError):  # it died just now, which the keeper is about to hear
            self.link.send(message)

    def hear(self) -> str:
        """What it says; "" when it has died."""
        try:
            return self.link.recv(MESSAGE_BYTES).decode()
        except ConnectionError:
            return ""

    def kill(self) -> None:
        if self.process_id:
            with suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGKILL)

    def end_spare(self) -> None:
        """By force: it holds nothing of its own, and may be stopped or busy. A daemon that it was to fork is missed."""
        self.link.close()
        self.kill()
        self.status()

    def is_half_dead(self) -> bool:
        """Whether its main thread has ended. Others of its threads may still be about to.

        One that waits in the kernel for another's request keeps the process, and its end of the link, for that long.
        """
        return bool(self.process_id) and procfs.has_ended(f"/proc/{self.process_id}")

    def status(self) -> int | None:
        """The exit code of one that has closed its link; a negative signal number; None when it cannot be told."""
        if not self.process_id:
            return None
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])
        except ChildProcessError:
            return None


def start_spare(kept: Mapping[str, int], log_fd: int | None) -> Child:
    """`kept` are the pool's descriptors; `log_fd` is where it is to write instead of to our standard error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptors = {**kept, schema.Held.KEEPER: theirs.fileno()}
    process_id = os.fork()
    if process_id == 0:
        try:
            os.setpgid(0, 0)  # a terminal's signals are for the keeper
            for stream in (1, 2):
                if log_fd is not None:
                    os.dup2(log_fd, stream)
            exec_with(descriptors, [sys.executable, "-P", "-m", schema.SPARE_MODULE], os.environ)
        finally:
            os._exit(127)
    theirs.close()
    return Child(ours, process_id)


def end_leftovers(cgroup: PoolCgroup) -> None:
    """A daemon that was killed leaves the child that looks at processes (`linux/looker.py`), perhaps for ever."""
    left = {process_id for process_id in cgroup.hierarchy.processes(cgroup.path) if _is_looker_of_ours(process_id)}
    for process_id in left:
        os.kill(process_id, signal.SIGKILL)  # our child, so the id is no other's
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while left and time.monotonic() < deadline:
        left -= {process_id for process_id in left if os.waitpid(process_id, os.WNOHANG)[0]}
        time.sleep(_POLL_SECONDS)


def _is_looker_of_ours(process_id: int) -> bool:
    """Whether a process in the pool's cgroup looks at others, and its parent, now this process, does not live."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(errors="replace")
        command = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"\nPPid:\t{os.getpid()}\n" in status and not _LOOKERS.isdisjoint(command)
