"""The requests that a daemon has read and not answered yet, kept in the state: its successor answers them.

Linux 6.9 and later send such requests again (FUSE_NOTIFY_RESEND). Earlier kernels do not, but take an answer still.
The request pump reads into a file of the state, so the last request is always there. A request that leaves that buffer
without an answer (it waits for its turn, for the slow lane or for pyfuse3) is copied to a file of its own, named by its
number, and the file goes when the answer is written. Whether a request still waits is asked of the kernel itself
(`Device.is_waiting`), so a request that was answered just before the death is not done a second time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from sharedfs.fuse import protocol as wire
from sharedfs.storage.state_files import StateFiles

_PREFIX = "in-hand-"


class InHand:
    """`begin`, `keep` and `end` are for the request pump; `answered` is called by any thread that answers."""

    def __init__(self, state: StateFiles) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._kept: set[int] = set()
        self._under_way = 0  # the request that the pump is handling, 0 once it is answered

    def begin(self, unique: int) -> None:
        self._under_way = unique

    def end(self, request: memoryview) -> None:
        """The pump is through with the request: keep it unless it was answered or wants no answer."""
        with self._lock:
            if self._under_way and self._under_way not in self._kept:
                self._keep(request)

    def keep(self, request: memoryview) -> None:
        """The request is put off."""
        with self._lock:
            self._keep(request)

    def answered(self, unique: int) -> None:
        with self._lock:
            if unique == self._under_way:
                self._under_way = 0
            if unique in self._kept:
                self._drop(unique)

    def take_over(self, last_read: memoryview, is_waiting: Callable[[int], bool]) -> None:
        """Another daemon had read `last_read` when it died: keep that, too, if the kernel waits for its answer."""
        length, _, unique = _header(last_read)
        with self._lock:
            self._kept.update(self._numbers())
            if length >= wire.IN_HEADER.size and is_waiting(unique):
                self._keep(last_read[:length])

    def waiting(self, is_waiting: Callable[[int], bool]) -> list[bytes]:
        """The kept requests that the kernel waits for, oldest first. The others are dropped."""
        requests = []
        with self._lock:
            for unique in sorted(self._kept):
                if is_waiting(unique):
                    requests.append(self._state.read(_name(unique)))
                else:
                    self._drop(unique)
        return requests

    def _keep(self, request: memoryview) -> None:
        """Whole or not at all: a copy that was cut is replaced, for the request is in the pump's buffer still."""
        _, opcode, unique = _header(request)
        if opcode not in wire.UNANSWERED:
            self._state.write(_name(unique), bytes(request))
            self._kept.add(unique)

    def _drop(self, unique: int) -> None:
        self._kept.discard(unique)
        self._state.remove(_name(unique))

    def _numbers(self) -> Iterator[int]:
        for name in self._state.names():
            if name.startswith(_PREFIX):
                with suppress(ValueError):  # a draft that was not renamed
                    yield int(name.removeprefix(_PREFIX))


def _name(unique: int) -> str:
    return f"{_PREFIX}{unique}"


def _header(request: memoryview) -> tuple[int, int, int]:
    """(length, opcode, unique)"""
    length, opcode, unique, *_ = wire.IN_HEADER.unpack_from(request)
    return length, opcode, unique
