"""Looks at other processes through a child process, because a look can hang for ever.

/proc/PID/maps, pagemap and others wait for a lock of the process. One that executes a program while it closes a file of
a filesystem of its own, which does not answer, holds that lock for as long as it likes. A thread cannot abandon such a
wait, and a pool has only so many threads; a child can be killed, for the kernel lets a fatal signal end it.

    Looker ── ids ──▶ child: look(id, argument) for each ── result ──▶ Looker
       └── no result, and the child sleeps: it is killed, the id is told as STUCK, a new child goes on with the rest

Slow is not stuck: a child that runs, or waits for a CPU, gets more time.
"""

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

PATIENCE_SECONDS = 0.25
"""A look that has slept for so long is stuck. Most take less than a millisecond."""
LONGEST_LOOK_SECONDS = 10.0
"""Even a look that runs ends after this: page tables of a terabyte are read in less."""
_POLL_SECONDS = 0.05
_LENGTH_BYTES = 4
_RECEIVE_BYTES = 1 << 20

STUCK: Final = object()
"""What a look gave that did not end."""

Look = Callable[[int, Any], Any]
"""A function at the top of a module: a process id and the argument, both plain data, to plain data."""


class Looker:
    """Asks one function about one process after the other. For one thread; `close` ends the child."""

    def __init__(self, look: Look, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._function = f"{look.__module__}:{look.__qualname__}"
        self._patience_seconds = patience_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._received = bytearray()

    def looks(self, process_ids: Iterable[int], argument: object) -> Iterator[tuple[int, Any]]:
        """Each id with what the look gave, in order; STUCK for one that did not end. Raises what a look raised."""
        left = list(process_ids)
        while left:
            self._ask(left, argument)
            answered = 0
            for process_id in left:
                try:
                    found = self._answer()
                except BaseException:
                    self.close()  # what it would still answer is to a question that nobody asks any more
                    raise
                answered += 1
                yield process_id, found
                if found is STUCK:
                    self.close()
                    break
            left = left[answered:]

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

    def _ask(self, process_ids: list[int], argument: object) -> None:
        if self._link is None:
            self._link, theirs = socket.socketpair()
            with theirs:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "sharedfs.looker", self._function, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        self._link.settimeout(None)
        self._link.sendall(_framed((process_ids, argument)))

    def _answer(self) -> Any:
        began = time.monotonic()
        slept_since: float | None = None
        while (found := _unframed(self._received)) is None:
            assert self._link is not None
            self._link.settimeout(_POLL_SECONDS)
            try:
                part = self._link.recv(_RECEIVE_BYTES)
            except TimeoutError:
                now = time.monotonic()
                slept_since = (slept_since or now - _POLL_SECONDS) if self._sleeps() else None
                is_stuck = slept_since is not None and now - slept_since >= self._patience_seconds
                if is_stuck or now - began > LONGEST_LOOK_SECONDS:
                    return STUCK
                continue
            if not part:
                raise OSError("the process that looks at others ended")
            self._received += part
        is_error, value = found
        if is_error:
            raise value
        return value

    def _sleeps(self) -> bool:
        """Whether the child waits for something else than a CPU. It has one thread."""
        assert self._child is not None
        try:
            return Path(f"/proc/{self._child.pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"R"
        except OSError:
            return False


_left_alone: list["subprocess.Popen[bytes]"] = []
"""Children that were killed and have not ended yet."""


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
    """The child: `python -m sharedfs.looker MODULE:FUNCTION FD`. Ends with the one who asks."""
    module, _, name = function.partition(":")
    look: Look = getattr(importlib.import_module(module), name)
    received = bytearray()
    with socket.socket(fileno=link_fd) as link:
        while part := link.recv(_RECEIVE_BYTES):
            received += part
            question = _unframed(received)
            if question is not None:
                process_ids, argument = question
                for process_id in process_ids:
                    try:
                        answer = False, look(process_id, argument)
                    except Exception as error:  # the one who asks shall see it
                        answer = True, error
                    link.sendall(_framed(answer))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
