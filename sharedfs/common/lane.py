"""The slow lane: long work beside the request pump, by a few threads, in turns of those who asked for it.

One tenant has at most half of the threads: another one's work begins at once as long as few tenants have some.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable

LONG_BYTES = 16 << 20
"""To make more than so many bytes is long work: it takes some 2 ms."""

PAUSE_SECONDS = 0.0001
"""Between two pieces of long work: who waits for a lock, or to run at all, gets it."""

Work = Callable[[], None]


class Lane:
    """`threads` of them, which start when they are wanted first. `on_error` is told in a thread what broke its work."""

    def __init__(self, threads: int, name: str, on_error: Callable[[BaseException], None]) -> None:
        self._threads_left = threads
        self._most_of_one = max(1, threads // 2)
        self._name = name
        self._on_error = on_error
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, deque[Work]] = {}
        self._turns: deque[Hashable] = deque()  # parties that wait and may have one more thread
        self._running: dict[Hashable, int] = {}
        self._idle = 0
        self._closed = False

    def submit(self, party: Hashable, work: Work) -> None:
        """Do `work` when it is the turn of `party`, after what it asked for before was begun."""
        with self._changed:
            self._waiting.setdefault(party, deque()).append(work)
            self._queue(party)
            if self._idle:
                self._changed.notify()
            elif self._threads_left:
                self._threads_left -= 1
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def shutdown(self) -> None:
        """Wait until all is done that was asked for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _queue(self, party: Hashable) -> None:
        may_run = self._running.get(party, 0) < self._most_of_one
        if party in self._waiting and party not in self._turns and may_run:
            self._turns.append(party)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._turns:
                    if self._closed and not self._waiting:
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                party = self._turns.popleft()
                work = self._waiting[party].popleft()
                if not self._waiting[party]:
                    del self._waiting[party]
                self._running[party] = self._running.get(party, 0) + 1
                self._queue(party)
            try:
                work()
            except BaseException as error:
                self._on_error(error)
            finally:
                with self._changed:
                    self._running[party] -= 1
                    if not self._running[party]:
                        del self._running[party]
                    self._queue(party)
                    self._changed.notify_all()
