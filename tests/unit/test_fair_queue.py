"""Turns: nobody waits longer than one round of the others, and nobody overtakes itself."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.fuse.fair_queue import FairQueue


def test_who_asks_once_waits_for_one_request_of_each_other() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.push("flood", f"flood {number}")
    queue.push("quiet", "quiet")
    assert [queue.pop() for _ in range(3)] == ["flood 0", "quiet", "flood 1"]
    assert len(queue) == 998


def test_nothing_waits() -> None:
    queue: FairQueue[str] = FairQueue()
    with pytest.raises(IndexError):
        queue.pop()
    queue.push("a", "x")
    assert queue.pop() == "x"
    with pytest.raises(IndexError):
        queue.pop()
    assert len(queue) == 0


@given(st.lists(st.one_of(st.integers(0, 4), st.none())))
def test_any_order_of_pushes_and_pops(steps: list[int | None]) -> None:
    """A number is a party that pushes, None a pop.

    Between an item's push and its pop no other party is served more than once for each predecessor and the item itself.
    """
    queue: FairQueue[tuple[int, int]] = FairQueue()
    waiting: dict[int, list[tuple[int, Counter[int], int]]] = {}
    served: Counter[int] = Counter()
    for number, party in enumerate([*steps, *[None] * len(steps)]):
        if party is not None:
            before = len(waiting.setdefault(party, []))
            waiting[party].append((number, served.copy(), before))
            queue.push(party, (party, number))
        elif len(queue):
            taken, pushed = queue.pop()
            first, served_then, before = waiting[taken].pop(0)
            assert first == pushed
            since = served - served_then
            assert all(count <= before + 1 for other, count in since.items() if other != taken)
            served[taken] += 1
        assert len(queue) == sum(map(len, waiting.values()))
