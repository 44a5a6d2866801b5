"""Death at a chosen moment, for tests: the daemon kills itself, or breaks, at a named point of a chosen operation.

Off unless the environment says so when the pool is mounted; then a test arms a point by writing to a file of the state.
"""

import os
import signal
from enum import IntEnum

from sharedfs.pool.schema import StateFile
from sharedfs.storage.state_files import StateFiles

VARIABLE = "SHAREDFS_FAULTS"
HIDDEN_FEATURES_VARIABLE = "SHAREDFS_HIDDEN_FEATURES"
"""INIT flags, in hexadecimal, that the kernel is taken not to have: how an older one is tried on a newer."""
HIDDEN_COLLAPSE_VARIABLE = "SHAREDFS_HIDDEN_COLLAPSE"
"""Files that nobody uses are moved as on a kernel that collapses no pages."""
_BYTES = 4096


class Point(IntEnum):
    """Where in an answer: what has happened when it is reached."""

    TAKEN = 1  # the request was read, nothing was done
    INTENDED = 2  # it is in the journal what is to be done
    DONE = 3  # the store has changed
    COMMITTED = 4  # the answer is in the journal
    ANSWERED = 5  # the kernel has the answer
    HALFWAY = 6  # the books have let go of a forgotten file, which the store has; pages are punched out, holes filled


class Start(IntEnum):
    """What daemons do at the end of recovery, before they read a request: the second word of the file, shifted by 8."""

    DIE = 1
    STOP = 2  # by SIGSTOP, until somebody has it go on


RECHARGE = 0
"""In place of an opcode: no request, but pages that become the pool's."""
REAP = 1 << 16
"""In place of an opcode: no request, but a piece of a file that is freed in the background."""
BREAK, AGAIN = 1 << 62, 1 << 63
"""Or-ed to an armed word: an exception that nobody foresaw instead of a kill; not once, but whenever it is reached."""


def armed_word(opcode: int, point: Point) -> int:
    """What to write (eight bytes, little endian) at the beginning of the file."""
    return opcode << 8 | point


def start_word(act: Start, daemons: int) -> int:
    """What to write as the second eight bytes: so many daemons will do this."""
    return act << 8 | daemons


class ArmedError(Exception):
    """What a daemon breaks of."""


class Faults:
    """The armed point; each kills once, unless it is to do so again."""

    def __init__(self, state: StateFiles) -> None:
        self._armed = memoryview(state.map(StateFile.FAULTS, _BYTES)).cast("Q")

    def reached(self, opcode: int, point: Point) -> None:
        armed = self._armed[0]
        if armed & ~(BREAK | AGAIN) == opcode << 8 | point:
            if not armed & AGAIN:
                self._armed[0] = 0
            if armed & BREAK:
                raise ArmedError
            os.kill(os.getpid(), signal.SIGKILL)

    def starts(self) -> None:
        """A daemon has taken over and is about to serve."""
        act, daemons = divmod(self._armed[1], 1 << 8)
        if daemons:
            self._armed[1] = start_word(Start(act), daemons - 1)
            os.kill(os.getpid(), signal.SIGKILL if act == Start.DIE else signal.SIGSTOP)


def faults_of(state: StateFiles) -> Faults | None:
    return Faults(state) if os.environ.get(VARIABLE) else None


def hidden_features() -> int:
    return int(os.environ.get(HIDDEN_FEATURES_VARIABLE, "0"), 16)


def collapse_is_hidden() -> bool:
    return bool(os.environ.get(HIDDEN_COLLAPSE_VARIABLE))
