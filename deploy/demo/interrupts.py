"""Ctrl-C, TERM and HUP end the demonstration in order: what it made is undone once, and nothing interrupts that.

A step that must not be cut in two (a mount and the note to unmount it) runs inside `whole_steps`.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The demonstration was asked to end."""


class _State:
    asked = False
    whole = 0


def catch() -> None:
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


@contextmanager
def whole_steps() -> Iterator[None]:
    """What is inside runs to its end before an interruption is raised."""
    _State.whole += 1
    try:
        yield
    finally:
        _State.whole -= 1
    if _State.asked and not _State.whole:
        _raise_once()


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    _State.asked = True
    if not _State.whole:
        _raise_once()


def _raise_once() -> None:
    _State.asked = False
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted
