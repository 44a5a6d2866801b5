"""The guard: a small process that gives inherited memory back to tenants before the kernel kills them.

The controller starts it and tells it which limits yield (`controller/settlement/watching.py`). It waits for the kernel
to say that a tenant comes near its limit, sees whether page cache could still make way, and if not raises the limits to
the values it was told, which are in the controller's journal. It never lowers a limit, and raises none that is not as
the controller wrote it: another value is the manager's word.

- v1: an eventfd for a usage threshold below the limit. The OOM eventfd comes with the kill and is of no use.
- v2: memory.events, which changes when usage passes memory.high; there the kernel throttles the tenant.
- Where the kernel tells nothing (v1 on a real-time kernel): usage is read as often as it could come near the limit.

The rule so holds without the controller. When the controller dies (end of input), or has said nothing for
`patience` seconds, the guard raises every limit that it watches and ends: a tenant is then as if nobody else had acted.

Run as a script, `guard.py LOCK HOST_LOCK PATIENCE`: standard library only, so that it is small and locked into memory.
Input, one JSON a line: {"watch": [...], "drop": [...], "look": [...], "quit": bool}. Each line is answered with one.
"""

import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypedDict

FASTEST_BYTES_PER_SECOND = 4 << 30
"""How fast a tenant may come to need what is page cache now. It decides when usage is looked at again."""
RESTS = 20
"""Between two looks at a tenant the guard rests so many times as long as the first one took, times the tenants that are
looked at: whatever tenants do around their thresholds, the guard takes some twentieth of a CPU."""
MOST_LAG_BYTES = 1 << 20
"""What the kernel's statistics lag behind: 64 pages a CPU, on small hosts."""
_MLOCK_ALL = 3  # MCL_CURRENT | MCL_FUTURE
_GONE = (FileNotFoundError, NotADirectoryError)


File = tuple[str, list[int | None], int | None]
"""A limit's file, the values to raise from and the one to raise to; None is no limit."""


class Entry(TypedDict):
    """A cgroup to watch; `key` names it in other orders and in answers."""

    key: str
    directory: str
    inode: int
    v1: bool
    threshold: int
    limit: int
    files: list[File]


class Order(TypedDict, total=False):
    """One line of input; keys name cgroups."""

    watch: list[Entry]
    drop: list[str]
    look: list[str]
    quit: bool


class Answer(TypedDict):
    """The cgroups whose limits were raised since the last answer."""

    raised: list[str]


@dataclass
class Watched:
    """One cgroup."""

    key: str
    directory: int
    v1: bool
    threshold_bytes: int
    limit_bytes: int
    files: list[File]
    event: int = -1
    due_seconds: float = field(default=float("inf"))
    """When to look again though no event came."""
    rested_seconds: float = 0.0
    """No look before."""

    @property
    def called_bytes(self) -> int:
        """A usage from which on the tenant is near its limit, for statistics that are a little late."""
        return self.threshold_bytes - min(MOST_LAG_BYTES, (self.limit_bytes - self.threshold_bytes) // 4)

    def close(self) -> None:
        for descriptor in (self.event, self.directory):
            if descriptor >= 0:
                os.close(descriptor)
        self.event = self.directory = -1


class Guard:
    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.watched: dict[str, Watched] = {}
        self.by_event: dict[int, Watched] = {}
        self.raised: list[str] = []

    # -- orders

    def obey(self, order: Order) -> None:
        for key in order.get("drop", ()):
            self.drop(key)
        for entry in order.get("watch", ()):
            self.drop(entry["key"])
            with suppress(*_GONE):
                self.watch(entry)
        for key in order.get("look", ()):
            if key in self.watched:
                self.look(self.watched[key])

    def watch(self, entry: Entry) -> None:
        directory = os.open(entry["directory"], os.O_RDONLY | os.O_DIRECTORY)
        files = [(name, lowered, raised) for name, lowered, raised in entry["files"]]
        watched = Watched(entry["key"], directory, entry["v1"], entry["threshold"], entry["limit"], files)
        if os.fstat(directory).st_ino != entry["inode"]:
            watched.close()
            return
        with suppress(OSError):
            self._subscribe(watched)
        self.watched[watched.key] = watched
        self.look(watched)

    def _subscribe(self, watched: Watched) -> None:
        if watched.v1:
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            event = os.open("memory.events", os.O_RDONLY, dir_fd=watched.directory)
        try:
            if watched.v1:
                usage = os.open("memory.usage_in_bytes", os.O_RDONLY, dir_fd=watched.directory)
                try:
                    _write(watched.directory, "cgroup.event_control", f"{event} {usage} {watched.threshold_bytes}")
                finally:
                    os.close(usage)
            else:
                os.pread(event, 4096, 0)
            self.epoll.register(event, _mask(watched))
        except OSError:
            os.close(event)
            raise
        watched.event = event
        self.by_event[event] = watched

    def drop(self, key: str) -> None:
        watched = self.watched.pop(key, None)
        if watched is not None:
            if watched.event >= 0:
                del self.by_event[watched.event]
                self.epoll.unregister(watched.event)
            watched.close()

    # -- tenants

    def wake(self, event: int) -> None:
        watched = self.by_event.get(event)
        if watched is None:
            return
        if time.monotonic() < watched.rested_seconds:
            watched.due_seconds = min(watched.due_seconds, watched.rested_seconds)
        else:
            self.look(watched)

    def _listen(self, watched: Watched) -> None:
        """Events come one at a time: the next one after this."""
        if watched.v1:
            with suppress(BlockingIOError):
                os.eventfd_read(watched.event)
        else:
            os.pread(watched.event, 4096, 0)  # or the kernel would not tell again
        self.epoll.modify(watched.event, _mask(watched))

    def look(self, watched: Watched) -> None:
        """Raise when the tenant needs it; else say when to look again."""
        begun = time.monotonic()
        try:
            if watched.event >= 0:
                self._listen(watched)
            watched.due_seconds = self._due_seconds(watched, begun)
        except OSError:  # the cgroup is gone
            self.drop(watched.key)
            return
        if watched.key not in self.watched:
            return
        looked_at = 1 + sum(other.due_seconds < float("inf") for other in self.watched.values())
        ended = time.monotonic()
        watched.rested_seconds = ended + (ended - begun) * RESTS * looked_at
        watched.due_seconds = max(watched.due_seconds, watched.rested_seconds)

    def _due_seconds(self, watched: Watched, now_seconds: float) -> float:
        """When to look again, if the tenant does not need its memory now."""
        usage_bytes = _number(watched, "memory.usage_in_bytes" if watched.v1 else "memory.current") or 0
        if usage_bytes < watched.called_bytes and watched.event >= 0:
            return float("inf")
        needed_bytes = usage_bytes - _cache_bytes(watched)
        if needed_bytes >= watched.called_bytes:
            self.give_back(watched)
        return now_seconds + (watched.limit_bytes - needed_bytes) / FASTEST_BYTES_PER_SECOND

    def give_back(self, watched: Watched) -> None:
        """Raise its limits, where they are as the controller wrote them."""
        for name, lowered, raised in watched.files:
            with suppress(OSError):  # it is gone, or its manager forbids it
                if _number(watched, name) in lowered:
                    _write(watched.directory, name, _text(raised, v1=watched.v1))
        self.raised.append(watched.key)
        self.drop(watched.key)

    def give_back_all(self) -> None:
        for watched in tuple(self.watched.values()):
            self.give_back(watched)

    def look_at_those_due(self) -> None:
        begun = time.monotonic()
        for watched in [watched for watched in self.watched.values() if watched.due_seconds <= begun]:
            self.look(watched)

    def wait_seconds(self) -> float:
        due_seconds = min((watched.due_seconds for watched in self.watched.values()), default=float("inf"))
        return max(0.0, due_seconds - time.monotonic())


def _mask(watched: Watched) -> int:
    return (select.EPOLLIN if watched.v1 else select.EPOLLPRI) | select.EPOLLONESHOT


def _read(watched: Watched, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=watched.directory)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


def _number(watched: Watched, name: str) -> int | None:
    text = _read(watched, name).strip()
    number = None if text == "max" else int(text)
    return None if number is None or number >= 1 << 62 else number


def _cache_bytes(watched: Watched) -> int:
    """What the kernel reclaims before it kills: page cache, and on v2 slab that says so."""
    lines = dict(line.split() for line in _read(watched, "memory.stat").splitlines())
    v1, v2 = ("total_inactive_file", "total_active_file"), ("inactive_file", "active_file", "slab_reclaimable")
    return sum(int(lines.get(key, 0)) for key in (v1 if watched.v1 else v2))


def _text(limit_bytes: int | None, *, v1: bool) -> str:
    return ("-1" if v1 else "max") if limit_bytes is None else str(limit_bytes)


def _write(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _be_quick() -> None:
    """Memory that stays and a CPU at once, as far as this process may."""
    gc.disable()
    libc = ctypes.CDLL(None)
    libc.mlockall(_MLOCK_ALL)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def serve(guard: Guard, patience_seconds: float) -> None:
    """Until the input ends, the controller is silent for too long, or a signal asks for the end."""
    pending = b""
    heard_seconds = time.monotonic()
    while True:
        left_seconds = heard_seconds + patience_seconds - time.monotonic()
        if left_seconds <= 0:
            return
        for descriptor, _ in guard.epoll.poll(min(left_seconds, guard.wait_seconds())):
            if descriptor != sys.stdin.fileno():
                guard.wake(descriptor)
                continue
            received = os.read(descriptor, 1 << 16)
            if not received:
                return
            heard_seconds = time.monotonic()
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                order: Order = json.loads(line)
                guard.obey(order)
                if order.get("quit"):
                    for key in tuple(guard.watched):
                        guard.drop(key)
                _answer({"raised": guard.raised})
                guard.raised = []
                if order.get("quit"):
                    return
        guard.look_at_those_due()


def _answer(answer: Answer) -> None:
    os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


HOST_LOCK_BYTE = 1
"""The guard's byte of the host's lock; the controller has another one (`controller/service/host_lock.py`)."""


def locked(descriptor: int, byte: int, kind: int) -> bool:
    """Take or give back the lock on a byte of a file, as an open file description's; False where another has it.

    `kind` is F_WRLCK or F_UNLCK. The bytes are those of struct flock (fcntl(2)).
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as a filesystem likes
        return False
    return True


def main() -> int:
    lock, host_lock, patience = sys.argv[1:]
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)  # in one write, over an earlier one
    locked(
        os.open(host_lock, os.O_WRONLY | os.O_CLOEXEC), HOST_LOCK_BYTE, fcntl.F_WRLCK
    )  # controllers with other directories wait
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _be_quick()
    guard = Guard()
    guard.epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    try:
        with suppress(BrokenPipeError):  # the controller has died
            _answer({"raised": []})
            serve(guard, float(patience))
    finally:
        guard.give_back_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
