"""Looks at processes through a child: what hangs is told, what is slow is waited for, and the others are looked at."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from sharedfs.looker import STUCK, Looker

HANGS, BURNS, RAISES, ENDS = 1001, 1002, 1003, 1004


def look(process_id: int, argument: Any) -> Any:
    """For the child. The process ids are none."""
    match process_id:
        case 1001:
            time.sleep(3600)
        case 1002:  # runs for longer than a sleeping look may take
            until = time.monotonic() + argument["burns"]
            while time.monotonic() < until:
                pass
        case 1003:
            raise FileNotFoundError(2, "gone", "/proc/1003")
        case 1004:
            os._exit(1)
    return process_id, argument.get("said")


def found(looker: Looker, ids: list[int], **argument: object) -> list[tuple[int, Any]]:
    try:
        return list(looker.looks(ids, argument))
    finally:
        looker.close()


def test_each_is_looked_at_in_order_by_one_child() -> None:
    ids = list(range(1, 900))
    assert found(Looker(look), ids, said="x" * 5000) == [(number, (number, "x" * 5000)) for number in ids]


def test_what_hangs_is_told_and_the_others_are_looked_at() -> None:
    ids = [1, HANGS, 2, HANGS, 3]
    assert found(Looker(look, 0.1), ids) == [
        (1, (1, None)),
        (HANGS, STUCK),
        (2, (2, None)),
        (HANGS, STUCK),
        (3, (3, None)),
    ]


def test_what_runs_is_slow_and_not_stuck() -> None:
    """The control is `HANGS` above: it takes as long, asleep."""
    assert found(Looker(look, 0.1), [BURNS], burns=1.0) == [(BURNS, (BURNS, None))]


def test_an_error_comes_through_and_the_child_goes_on() -> None:
    looker = Looker(look)
    with pytest.raises(FileNotFoundError):
        list(looker.looks([RAISES, 1, 2], {}))
    assert found(looker, [5]) == [(5, (5, None))]


def test_a_child_that_ends_is_an_error_and_the_next_one_goes_on() -> None:
    looker = Looker(look)
    with pytest.raises(OSError, match="ended"):
        list(looker.looks([ENDS, 1], {}))
    assert found(looker, [5]) == [(5, (5, None))]


def test_no_child_is_left() -> None:
    looker = Looker(look, 0.1)
    found(looker, [1, HANGS])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [child for child in children if b"sharedfs.looker" in Path(f"/proc/{child}/cmdline").read_bytes()]
