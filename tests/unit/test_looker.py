"""Looks at processes through a child: what hangs is told, what is slow is waited for, and the others are looked at."""

import math
import os
import time
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from sharedfs.linux import procfs
from sharedfs.linux.looker import PASSED_OVER, PUT_OFF, SLOW, STUCK, Looker, NoLooks, one_round

HANGS, BURNS, RAISES, ENDS, HANGS_TOO, DENIED, BURNS_TOO = 1001, 1002, 1003, 1004, 1005, 1006, 1007


def look(process_id: int, argument: Any) -> Any:
    """For the child. The process ids are none."""
    match process_id:
        case 1001 | 1005:
            time.sleep(3600)
        case 1002 | 1007:  # runs for longer than a sleeping look may take
            until = time.monotonic() + argument["burns"]
            while time.monotonic() < until:
                pass
        case 1003:
            raise ValueError("a fault of the look itself")
        case 1004:
            os._exit(1)
        case 1006:
            raise OSError(EIO, "no", "/proc/1006/maps")
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


def test_what_runs_for_too_long_is_told_apart_from_what_hangs() -> None:
    assert found(Looker(look, 0.1, 0.3), [BURNS, 1], burns=60.0) == [(BURNS, SLOW), (1, (1, None))]


def test_an_error_comes_through_and_the_child_goes_on() -> None:
    looker = Looker(look)
    with pytest.raises(ValueError, match="a fault of the look"):
        list(looker.looks([RAISES, 1, 2], {}))
    assert found(looker, [5]) == [(5, (5, None))]


def test_of_whom_the_kernel_does_not_tell_is_passed_over_and_the_child_goes_on() -> None:
    assert found(Looker(look), [1, DENIED, 2]) == [(1, (1, None)), (DENIED, PASSED_OVER), (2, (2, None))]


def test_who_looks_when_the_child_is_killed_is_not_looked_at_and_the_next_one_goes_on() -> None:
    assert found(Looker(look), [ENDS, 1]) == [(ENDS, STUCK), (1, (1, None))]


def test_a_child_that_was_killed_between_two_questions_is_followed_by_another() -> None:
    looker = Looker(look)
    list(looker.looks([1], {}))
    assert looker._child is not None
    looker._child.kill()
    looker._child.wait()
    assert found(looker, [2]) == [(2, (2, None))]


def test_a_question_that_is_given_up_leaves_no_answers_for_the_next_one() -> None:
    looker = Looker(look)
    given_up = looker.looks([1, 2, 3], {})
    next(given_up)
    given_up.close()
    assert found(looker, [4]) == [(4, (4, None))]


def test_a_looker_that_has_ended_makes_no_child() -> None:
    looker = Looker(look)
    list(looker.looks([1], {}))
    looker.end()
    assert looker._child is not None
    looker._child.wait()
    with pytest.raises(NoLooks):
        list(looker.looks([1], {}))
    looker.close()


def in_one_round(
    ids: list[int],
    cgroups: dict[int, bytes],
    most_seconds: float,
    patch: pytest.MonkeyPatch,
    *,
    burns: float = 0.0,
    most_of_a_cgroup: float = math.inf,
    longest: float = 60.0,
) -> list[Any]:
    """The process ids are none, so their cgroups are made up."""
    patch.setattr(procfs, "cgroup_of", lambda task: cgroups.get(int(task.removeprefix("/proc/")), b"other"))
    looker = Looker(look, 0.1, longest)
    try:
        return list(one_round(looker, ids, {"burns": burns}, most_seconds, most_of_a_cgroup))
    finally:
        looker.close()


def test_a_second_one_of_a_cgroup_that_hangs_has_the_rest_of_it_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [HANGS, 5, HANGS_TOO, 6, 7]
    cgroups = {HANGS: b"hostile", HANGS_TOO: b"hostile", 5: b"hostile", 7: b"hostile"}
    assert in_one_round(ids, cgroups, 60, monkeypatch) == [
        (HANGS, STUCK),
        (5, (5, None)),
        (HANGS_TOO, STUCK),
        (6, (6, None)),
        (7, PASSED_OVER),
    ]


def test_a_round_waits_for_stuck_ones_for_so_long_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is above: with more patience the others are looked at."""
    found_ones = in_one_round([5, HANGS, 6], {HANGS: b"hostile"}, 0.05, monkeypatch)
    assert found_ones == [(5, (5, None)), (HANGS, STUCK), (6, PASSED_OVER)]


SLOW_CGROUP = {BURNS: b"slow", 5: b"slow", BURNS_TOO: b"slow", 6: b"slow"}


def test_a_cgroup_whose_processes_take_long_has_its_time_and_the_rest_of_it_is_put_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = [BURNS, 5, BURNS_TOO, 6, 7]
    slow = {"burns": 0.3, "most_of_a_cgroup": 0.2}
    assert in_one_round(ids, SLOW_CGROUP, 60, monkeypatch, **slow) == [
        (BURNS, (BURNS, None)),
        (7, (7, None)),
        (5, PUT_OFF),
        (BURNS_TOO, PUT_OFF),
        (6, PUT_OFF),
    ]


def test_without_a_bound_the_others_wait_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    ids = [BURNS, 5, BURNS_TOO, 6, 7]
    assert in_one_round(ids, SLOW_CGROUP, 60, monkeypatch, burns=0.3) == [(number, (number, None)) for number in ids]


def test_a_look_that_runs_for_too_long_keeps_no_other_cgroup_from_being_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control is above: as much time of a process that hangs has all others passed over."""
    found_ones = in_one_round([BURNS, 5, 7], SLOW_CGROUP, 0.05, monkeypatch, burns=60.0, longest=0.3)
    assert found_ones == [(BURNS, SLOW), (7, (7, None)), (5, PUT_OFF)]


def test_no_child_is_left() -> None:
    looker = Looker(look, 0.1)
    found(looker, [1, HANGS])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [child for child in children if b"sharedfs.linux.looker" in Path(f"/proc/{child}/cmdline").read_bytes()]
