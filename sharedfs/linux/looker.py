"""Looks at other processes through a child process, because a look can hang for ever.

/proc/PID/maps, stat, cwd and many others wait for a lock of the process. One that executes a program while it closes a
file of a filesystem of its own, which does not answer, holds that lock for as long as it likes. A thread cannot abandon
such a wait, and a pool has only so many threads; a child can be killed, for the kernel lets a fatal signal end it.

    Looker ── ids ──▶ child: look(id, argument) for each ── result ──▶ Looker
       └── no result, and the child sleeps: it is killed, the id is told as STUCK, a new child goes on with the rest

Slow is not stuck: a child that runs, or waits for a CPU, gets more time. A look that runs for too long all the same is
SLOW. A round can bound the time that all looks at the processes of one cgroup take (`one_round`).
"""

import importlib
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sharedfs.common.errors import HostFault
from sharedfs.linux import procfs

PATIENCE_SECONDS = 0.25
"""A look that has slept for so long is stuck. Most take less than a millisecond."""
LONGEST_LOOK_SECONDS = 10.0
"""Even a look that runs ends after this: page tables of a terabyte are read in less."""
MOST_STUCK_SECONDS = 1.0
"""So long a round waits for processes that are stuck, all together."""
_MOST_STUCK_OF_A_CGROUP = 2
_LONG_LOOK_SECONDS = 0.001  # from here on it is asked whose process it is
_START_SECONDS = 30.0  # of a child, which imports what it needs from a disk that may be busy
_POLL_SECONDS = 0.05
_LENGTH_BYTES = 4
_TOLD, _UNTOLD, _BROKEN = range(3)  # what comes back of a look: its value, nothing for an OSError, another error
_RECEIVE_BYTES = 1 << 20
_FIRST_TO_BE_KILLED = "1000"  # oom_score_adj: a child is made anew, what it looks for is not

STUCK: Final = object()
"""What a look gave that did not end, while it waited for the process."""
SLOW: Final = object()
"""What a look gave that ran for longer than any may."""
PASSED_OVER: Final = object()
"""What there is of a process that a round left out, or of which the kernel does not tell (an OSError)."""
PUT_OFF: Final = object()
"""The same, where looks at the processes of its cgroup had taken their time: it is the turn of others."""


def is_unseen(found: object) -> bool:
    """Whether a look gave nothing, for whatever reason."""
    return any(found is nothing for nothing in (STUCK, SLOW, PASSED_OVER, PUT_OFF))


Look = Callable[[int, Any], Any]
"""A function at the top of a module: a process id and the argument, both plain data, to plain data."""


class NoLooks(HostFault):
    """The process that looks at others does not start."""


class Looker:
    """Asks one function about one process after the other. For one thread; `close` ends the child."""

    def __init__(
        self, look: Look, patience_seconds: float = PATIENCE_SECONDS, longest_seconds: float = LONGEST_LOOK_SECONDS
    ) -> None:
        self._function = f"{look.__module__}:{look.__qualname__}"
        self._patience_seconds = patience_seconds
        self._longest_seconds = longest_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._received = bytearray()
        self._ended = False
        self.waited_seconds = 0.0
        """How long the last look was waited for; to start a child is not counted."""

    def looks(self, process_ids: Iterable[int], argument: object) -> Iterator[tuple[int, Any]]:
        """Each id with what the look gave, in order: STUCK or SLOW if it did not end, PASSED_OVER after an OSError.

        Raises what else a look raised.
        """
        left = deque(process_ids)
        try:
            while left:
                self._ask(list(left), argument)
                found: Any = None
                while left and found is not STUCK and found is not SLOW:
                    began = time.monotonic()
                    found = self._answer(began)
                    self.waited_seconds = time.monotonic() - began
                    if found is STUCK or found is SLOW:
                        self.close()
                    yield left.popleft(), found
        except BaseException:
            if left:  # what the child would still answer is to a question that nobody asks any more
                self.close()
            raise

    def close(self) -> None:
        """Kill the child. One that cannot be killed now is left to end by itself."""
        child, link, self._child, self._link = self._child, self._link, None, None
        self._received.clear()
        if link is not None:
            link.close()
        if child is not None:
            child.send_signal(signal.SIGKILL)
            try:
                child.wait(self._patience_seconds)
            except subprocess.TimeoutExpired:
                _left_alone.append(child)
        _left_alone[:] = [other for other in _left_alone if other.poll() is None]

    def end(self) -> None:
        """From another thread: no look ends any more, and no child is made."""
        self._ended = True
        child = self._child
        if child is not None:
            child.kill()

    def _ask(self, process_ids: list[int], argument: object) -> None:
        question = _framed((process_ids, argument))
        for _ in range(2):  # a child that has ended meanwhile is followed by another one
            link = self._link or self._start()
            link.settimeout(None)
            try:
                return link.sendall(question)
            except ConnectionError:
                self.close()
        raise NoLooks("the process that looks at others ends as soon as it is asked")

    def _start(self) -> socket.socket:
        """A child that is ready. It holds nothing of ours but its end of the link."""
        if self._ended:
            raise NoLooks("nobody is looked at any more")
        self._link, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in sys.path if os.path.isabs(path))
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "sharedfs.linux.looker", self._function, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # a terminal's signals are not for it
            )
        self._link.settimeout(_START_SECONDS)
        try:
            ready = self._link.recv(1)
        except TimeoutError:
            ready = b""
        if not ready:
            self.close()
            raise NoLooks("the process that looks at others does not start")
        return self._link

    def _answer(self, began: float) -> Any:
        slept_since: float | None = None
        while (found := _unframed(self._received)) is None:
            assert self._link is not None
            self._link.settimeout(_POLL_SECONDS)
            try:
                part = self._link.recv(_RECEIVE_BYTES)
            except TimeoutError:
                now = time.monotonic()
                slept_since = (slept_since or now - _POLL_SECONDS) if self._sleeps() else None
                if slept_since is not None and now - slept_since >= self._patience_seconds:
                    return STUCK
                if now - began > self._longest_seconds:
                    return SLOW
                continue
            except ConnectionError:
                part = b""
            if not part:
                return STUCK  # killed, for want of memory for example: another one goes on
            self._received += part
        outcome, value = found
        if outcome == _BROKEN:
            raise value
        return PASSED_OVER if outcome == _UNTOLD else value

    def _sleeps(self) -> bool:
        """Whether the child waits for something else than a CPU. It has one thread."""
        assert self._child is not None
        try:
            return Path(f"/proc/{self._child.pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"R"
        except OSError:
            return False


_left_alone: list["subprocess.Popen[bytes]"] = []
"""Children that were killed and have not ended yet."""


def one_round(
    looker: Looker,
    process_ids: Iterable[int],
    argument: object,
    most_stuck_seconds: float = MOST_STUCK_SECONDS,
    most_of_a_cgroup_seconds: float = math.inf,
) -> Iterator[tuple[int, Any]]:
    """As `Looker.looks`, but whoever makes hung or slow processes by the hundred keeps it from the others for a moment.

    When a second process of a cgroup is stuck, the rest of that cgroup is PASSED_OVER; when waiting for those that are
    stuck has taken `most_stuck_seconds`, so are all that are left. When looks at processes of a cgroup have taken
    `most_of_a_cgroup_seconds`, or one was SLOW, the rest of the cgroup is PUT_OFF. All these come last.
    """
    left, passed_over = list(process_ids), list[tuple[int, Any]]()
    times = _Times(most_of_a_cgroup_seconds)
    while left:
        done, why = 0, None
        for process_id, found in looker.looks(left, argument):
            done += 1
            if found is STUCK or found is SLOW or looker.waited_seconds >= _LONG_LOOK_SECONDS:
                why = times.why_no_more(process_id, found, looker.waited_seconds)
            yield process_id, found
            if why is not None or times.stuck_seconds >= most_stuck_seconds:
                break
        left = left[done:]
        if times.stuck_seconds >= most_stuck_seconds:
            passed_over += ((other, PASSED_OVER) for other in left)
            left = []
        elif why is not None:
            its = times.of_its_cgroup(left)
            passed_over += ((other, why) for other in left if other in its)
            left = [other for other in left if other not in its]
    yield from passed_over


class _Times:
    """What the looks at the processes of each cgroup have taken in a round."""

    def __init__(self, most_of_a_cgroup_seconds: float) -> None:
        self._most_of_a_cgroup_seconds = most_of_a_cgroup_seconds
        self._stuck: Counter[bytes | None] = Counter()
        self._seconds: defaultdict[bytes | None, float] = defaultdict(float)
        self._cgroup: bytes | None = None
        self.stuck_seconds = 0.0

    def why_no_more(self, process_id: int, found: object, seconds: float) -> object:
        """What there is of the other processes of this one's cgroup; None when they are looked at."""
        self._cgroup = cgroup = procfs.cgroup_of(f"/proc/{process_id}")
        if found is STUCK:
            self._stuck[cgroup] += 1
            self.stuck_seconds += seconds
            return PASSED_OVER if self._stuck[cgroup] == _MOST_STUCK_OF_A_CGROUP else None
        self._seconds[cgroup] += seconds
        return PUT_OFF if found is SLOW or self._seconds[cgroup] >= self._most_of_a_cgroup_seconds else None

    def of_its_cgroup(self, others: list[int]) -> set[int]:
        """Those in the cgroup that `why_no_more` was asked about last."""
        return {other for other in others if procfs.cgroup_of(f"/proc/{other}") == self._cgroup}


def _framed(value: object) -> bytes:
    body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


def _unframed(received: bytearray) -> Any:
    """The next message, which is taken off; None when it is not whole yet."""
    end = _LENGTH_BYTES + int.from_bytes(received[:_LENGTH_BYTES], "little")
    if len(received) < max(end, _LENGTH_BYTES + 1):
        return None
    value = pickle.loads(received[_LENGTH_BYTES:end])
    del received[:end]
    return value


def main(function: str, link_fd: int) -> None:
    """The child: `python -m sharedfs.linux.looker MODULE:FUNCTION FD`. Ends with the one who asks."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_BE_KILLED)
    module, _, name = function.partition(":")
    look: Look = getattr(importlib.import_module(module), name)
    received = bytearray()
    with socket.socket(fileno=link_fd) as link:
        link.sendall(b"\n")
        while part := link.recv(_RECEIVE_BYTES):
            received += part
            question = _unframed(received)
            if question is not None:
                process_ids, argument = question
                for process_id in process_ids:
                    try:
                        answer = _TOLD, look(process_id, argument)
                    except OSError:
                        answer = _UNTOLD, None
                    except Exception as error:  # the one who asks shall see it
                        answer = _BROKEN, error
                    link.sendall(_framed(answer))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
