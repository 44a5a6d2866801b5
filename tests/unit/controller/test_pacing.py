"""How fast limits move: bounds over any window, and no trembling."""

from hypothesis import given
from hypothesis import strategies as st

from controller.limits.types import Limits, Order
from controller.settlement.pacing import Pace, Pacing, given_up_bytes
from controller.settlement.peaks import Peaks
from sharedfs.linux.cgroups import CgroupRef

A, B = CgroupRef("/a", 1), CgroupRef("/b", 2)
PACE = Pace(descent_bytes_per_second=100, writes_per_second=2, write_burst=4, step_bytes=10, hold_seconds=2)


def move(now: int | None, intended: int | None) -> Order:
    return Order(A, Limits(now), Limits(intended))


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 3.0]), st.integers(0, 1000), st.integers(0, 1000)), max_size=40)
)
def test_writes_and_bytes_down_are_bounded_in_every_window(steps: list[tuple[float, int, int]]) -> None:
    pacing, now_seconds, limit, given_up = Pacing(PACE), 0.0, 1000, 0
    written: list[tuple[float, int]] = []
    for passed, target, usage in steps:
        now_seconds += passed
        may_give = pacing.descent_bytes(now_seconds, A)
        assert may_give is not None
        intended = max(target, min(limit, usage) - may_give)  # as `settle` does
        order = move(limit, intended) if intended != limit else None
        if pacing.admit(now_seconds, order, A, usage) and order is not None:
            given_up = given_up_bytes(order, usage)
            assert given_up <= may_give
            written.append((now_seconds, given_up))
            limit = intended
    for begin, (from_seconds, _) in enumerate(written):
        for end in range(begin, len(written)):
            window = written[end][0] - from_seconds
            assert end - begin + 1 <= PACE.write_burst + window * PACE.writes_per_second + 1e-6
            down = sum(bytes_down for _, bytes_down in written[begin : end + 1])
            assert down <= PACE.descent_bytes_per_second * (1 + window) + 1e-6


def test_what_takes_nothing_from_a_tenant_is_not_paced() -> None:
    assert given_up_bytes(move(1000, 600), 500) == 0
    assert given_up_bytes(move(1000, 400), 500) == 100
    assert given_up_bytes(move(None, 400), 500) == 100
    assert given_up_bytes(move(400, 300), 500) == 100
    assert given_up_bytes(move(300, None), 500) == 0
    assert given_up_bytes(Order(A, Limits(900), Limits(900, 450)), 500) == 50


def test_a_share_that_trembles_does_not_make_the_limit_tremble() -> None:
    pacing, limit, written = Pacing(PACE), 100, 0
    for turn in range(200):
        target = 95 if turn % 2 else 99
        order = move(limit, target) if target != limit else None
        if pacing.admit(turn * 0.5, order, A, 0) and order is not None:
            limit, written = target, written + 1
    assert (limit, written) == (95, 2), "two ways down, none up"


def test_a_small_raise_comes_when_it_lasts_and_a_large_one_at_once() -> None:
    pacing = Pacing(PACE)
    assert not pacing.admit(0.0, move(90, 95), A, 0)
    assert not pacing.admit(1.9, move(90, 95), A, 0)
    assert pacing.admit(2.0, move(90, 95), A, 0)
    assert pacing.admit(2.1, move(90, 100), A, 0)
    assert pacing.admit(2.2, move(90, None), A, 0)
    assert pacing.put_off == 2
    assert not pacing.admit(2.3, None, A, 0)


def test_no_bound_where_none_is_wanted_and_what_is_gone_is_forgotten() -> None:
    pacing = Pacing(Pace(descent_bytes_per_second=0))
    assert pacing.descent_bytes(0.0, A) is None
    pacing = Pacing(PACE)
    assert pacing.admit(0.0, move(1000, 900), A, 1000)
    assert pacing.descent_bytes(0.0, A) == 0
    pacing.keep({B})
    assert pacing.descent_bytes(0.0, A) == 100


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 100)), min_size=1))
def test_what_was_needed_of_late_is_the_highest_of_the_window(readings: list[tuple[int, int]]) -> None:
    peaks, now_seconds, seen = Peaks(10.0), 0, list[tuple[int, int]]()
    for passed, needed in readings:
        now_seconds += passed
        seen.append((now_seconds, needed))
        window = [value for at, value in seen if at >= now_seconds - 10]
        margin = (max(window) - min(window)) // 2
        if now_seconds - seen[0][0] < 2:
            margin = max(margin, max(window) // 8)
        assert peaks.note(now_seconds, A, needed) == max(window) + margin
    peaks.keep({B})
    assert peaks.note(now_seconds, A, 8) == 9
