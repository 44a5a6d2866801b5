"""Looks at other processes one by one, each of which may keep whoever looks at it waiting for ever.

/proc/PID/maps and pagemap wait for a lock of the process: one whose own filesystem does not answer can hold it. So
somebody else watches `at`, and gives up for the thread that looks. The process is then left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sharedfs.kernel import proc


class GivenUp(Exception):
    """The look took too long, and its thread has been replaced: nothing that it found counts."""


class ProcessWalk:
    """One task's."""

    def __init__(self) -> None:
        self._stuck: set[int] = set()
        self.at = (0, 0)
        """How often it was given up, and the process that is looked at; 0 for none."""

    def processes(self) -> Iterator[int]:
        """All processes that are not stuck, each looked at until the next one is asked for. Raises GivenUp."""
        number = self.at[0]
        for process_id in proc.process_ids():
            if process_id not in self._stuck:
                self.at = (number, process_id)
                yield process_id
                self._check(number, process_id)
        self.at = (number, 0)

    @contextmanager
    def looking_at(self, process_id: int) -> Iterator[None]:
        """Raises GivenUp afterwards when it was given up."""
        number = self.at[0]
        self.at = (number, process_id)
        yield
        self._check(number, process_id)
        self.at = (number, 0)

    def _check(self, number: int, process_id: int) -> None:
        if self.at[0] != number:
            self._stuck.discard(process_id)  # it is so no more
            raise GivenUp

    def give_up(self) -> int:
        """For another thread: the look does not get on. Returns the process, which is left out from now on."""
        number, process_id = self.at
        self._stuck.add(process_id)
        self.at = (number + 1, 0)
        return process_id
