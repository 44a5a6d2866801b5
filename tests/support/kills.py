"""Children that are killed where their parent wants it: at a line of our code, counted, or at any moment.

The child is a fork. SIGKILL comes from itself, so nothing of it runs afterwards: no handler, no destructor, no buffer.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Trace = Callable[[FrameType, str, Any], Any]


def is_zombie(process_id: int) -> bool:
    """Whether a process has died and its parent has not asked for it yet."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def run_in_child(work: Callable[[], None]) -> int:
    """Fork, do `work` there, and return how it ended: 0, or minus the signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.settrace(None)
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines_of(work: Callable[[], None], where: str) -> int:
    """How many lines of files below `where` `work` runs."""
    count = 0

    def on_line() -> None:
        nonlocal count
        count += 1

    _traced(work, where, on_line)
    return count


def killed_at_line(work: Callable[[], None], where: str, line: int) -> None:
    """Do `work`, and be killed before the `line`-th of its lines below `where`."""
    left = line

    def on_line() -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    _traced(work, where, on_line)


def _traced(work: Callable[[], None], where: str, on_line: Callable[[], None]) -> None:
    def trace(frame: FrameType, event: str, _: Any) -> Trace | None:
        if not frame.f_code.co_filename.startswith(where):
            return None
        if event == "line":
            on_line()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
