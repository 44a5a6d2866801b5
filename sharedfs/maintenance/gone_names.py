"""Tells the kernel of names that are gone without a request, each directory's one after the other.

The kernel waits for the directory's lock, which a tenant can hold for as long as it likes (an unlink waits for a file
that is being written from memory that never comes). So each directory has its own turn, in one of some threads: one
that is stuck keeps nobody from the others. Until it is told, the kernel may show a name that is gone, and whoever opens
it gets ESTALE or ENOENT.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("sharedfs")

MOST_THREADS = 64
"""So many directories can be stuck before others wait for them."""


@dataclass(frozen=True, slots=True)
class TakenOut:
    """A file that has left the tree, and the name in directory `parent` that the kernel may remember.

    `shown` is for messages.
    """

    parent: int
    inode: int
    name: bytes
    shown: str


class GoneNames:
    """`tell` is called in a thread, and may wait for ever."""

    def __init__(self, tell: Callable[[TakenOut], None]) -> None:
        self._tell = tell
        self._changed = threading.Condition()
        self._names: dict[int, deque[TakenOut]] = {}
        """By directory; it stays until none is left and no thread is at it."""
        self._turns: deque[int] = deque()
        """Directories that no thread is at."""
        self._threads = self._idle = 0

    def put(self, taken: TakenOut) -> None:
        """From any thread; waits for nobody."""
        with self._changed:
            names = self._names.get(taken.parent)
            if names is not None:
                names.append(taken)
                return
            self._names[taken.parent] = deque([taken])
            self._turns.append(taken.parent)
            if self._idle < len(self._turns) and self._threads < MOST_THREADS:
                self._threads += 1
                threading.Thread(target=self._run, name="names that are gone", daemon=True).start()
            else:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            parent = self._next_turn()
            while (taken := self._next_name(parent)) is not None:
                try:
                    self._tell(taken)
                except OSError as error:
                    log.warning("the kernel is not told that %s is gone: %s", taken.shown, error)

    def _next_turn(self) -> int:
        with self._changed:
            self._idle += 1
            while not self._turns:
                self._changed.wait()
            self._idle -= 1
            return self._turns.popleft()

    def _next_name(self, parent: int) -> TakenOut | None:
        with self._changed:
            names = self._names[parent]
            if names:
                return names.popleft()
            del self._names[parent]
            return None
