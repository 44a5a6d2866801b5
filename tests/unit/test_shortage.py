"""A request that finds no space, or no descriptor, is done again as long as that can be remedied, and no longer."""

from collections.abc import Callable
from errno import EDQUOT, EINVAL, EMFILE, ENOSPC

import pytest

from sharedfs.fuse.shortage import Shortage


class Pool:
    """A full pool with pieces that wait to be freed; `acts` counts what was tried."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting
        self.pieces = 0
        self.acts = 0

    def free_some(self) -> bool:
        if not self.waiting:
            return False
        self.waiting -= 1
        self.pieces += 1
        return True

    def freed_since(self, pieces: int) -> bool:
        return self.free_some() or self.pieces != pieces

    def act(self, needed: int, number: int = ENOSPC, meanwhile: Callable[[], object] = lambda: None) -> int:
        self.acts += 1
        if self.pieces < needed:
            meanwhile()
            raise OSError(number, "no")
        return self.acts


class Unaware(Pool):
    """Looks at what waits, and at nothing else."""

    def freed_since(self, _pieces: int) -> bool:
        return self.free_some()


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT])
def test_what_waits_is_freed_piece_by_piece(number: int) -> None:
    pool = Pool(waiting=5)
    assert Shortage(waits=pool).again(lambda: pool.act(3, number)) == 4
    assert pool.waiting == 2


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT])
def test_a_piece_that_another_thread_freed_meanwhile_counts(number: int) -> None:
    """The last one goes between the failure and the look at what waits: nothing waits then, and there is space."""
    pool = Pool(waiting=1)
    shortage = Shortage(waits=pool)
    assert shortage.again(lambda: pool.act(1, number, meanwhile=pool.free_some)) == 2

    unaware = Unaware(waiting=1)  # the control
    with pytest.raises(OSError, match="no"):
        Shortage(waits=unaware).again(lambda: unaware.act(1, number, meanwhile=unaware.free_some))


def test_nothing_to_free_is_the_end_and_told() -> None:
    told: list[int] = []
    pool = Pool()
    shortage = Shortage(waits=pool, found_none=lambda: told.append(1))
    with pytest.raises(OSError, match="no"):
        shortage.again(lambda: pool.act(1))
    assert pool.acts == 1
    assert told == [], "whoever called may find some"
    with pytest.raises(OSError, match="no"):
        shortage.again(lambda: pool.act(1), memoryview(b"request"))
    assert told == [1]


def test_room_for_descriptors_is_made_once() -> None:
    rooms: list[int] = []
    pool = Pool()
    with pytest.raises(OSError, match="no"):
        Shortage(make_room=lambda: rooms.append(1)).again(lambda: pool.act(1, EMFILE))
    assert pool.acts == 2
    assert rooms == [1]


def test_another_error_is_nothing_to_remedy() -> None:
    pool = Pool(waiting=5)
    with pytest.raises(OSError, match="no"):
        Shortage(waits=pool).again(lambda: pool.act(1, EINVAL))
    assert pool.waiting == 5
