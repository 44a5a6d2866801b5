"""Names that are gone: each directory's in turn, and one that is stuck keeps nobody from the others."""

import threading

import pytest

from sharedfs.maintenance import gone_names
from sharedfs.maintenance.gone_names import GoneNames, TakenOut
from tests.support.tenants import wait_until


class Kernel:
    """Hears of names. A directory in `held` answers when it is let go."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.held: dict[int, threading.Event] = {}
        self.threads: set[int] = set()

    def tell(self, taken: TakenOut) -> None:
        self.threads.add(threading.get_ident())
        if taken.parent in self.held:
            assert self.held[taken.parent].wait(30)
        if taken.inode < 0:
            raise OSError("it is not there")
        self.told.append((taken.parent, taken.inode))

    def hold(self, parent: int) -> None:
        self.held[parent] = threading.Event()


def taken(parent: int, inode: int) -> TakenOut:
    return TakenOut(parent, inode, b"name", "name")


def test_a_directory_that_is_stuck_keeps_only_its_own_names() -> None:
    kernel = Kernel()
    names = GoneNames(kernel.tell)
    kernel.hold(1)
    for inode in range(3):
        names.put(taken(1, inode))
        names.put(taken(2, inode))
    names.put(taken(3, 0))
    wait_until(lambda: len(kernel.told) == 4, "the others are told")
    assert [one for one in kernel.told if one[0] == 2] == [(2, 0), (2, 1), (2, 2)], "in their order"
    kernel.held[1].set()
    wait_until(lambda: len(kernel.told) == 7, "and these once it is free")
    assert [one for one in kernel.told if one[0] == 1] == [(1, 0), (1, 1), (1, 2)]


def test_threads_are_used_again_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone_names, "MOST_THREADS", 2)
    kernel = Kernel()
    names = GoneNames(kernel.tell)
    for number in range(20):
        names.put(taken(1, number))
        wait_until(lambda number=number: len(kernel.told) == number + 1, "it is told")  # type: ignore[misc]
    assert len(kernel.threads) == 1
    for parent in (7, 8, 9):
        kernel.hold(parent)
        names.put(taken(parent, 0))
    names.put(taken(10, 0))
    wait_until(lambda: len(kernel.threads) == 2, "another one came")
    kernel.held[8].set()
    kernel.held[9].set()
    wait_until(lambda: len(kernel.told) == 23, "one thread did the rest")
    assert (10, 0) in kernel.told
    kernel.held[7].set()
    wait_until(lambda: len(kernel.told) == 24, "and the other ended its own")
    assert len(kernel.threads) == 2


def test_a_name_that_the_kernel_does_not_take_is_no_end() -> None:
    kernel = Kernel()
    names = GoneNames(kernel.tell)
    names.put(taken(1, -1))
    names.put(taken(1, 5))
    wait_until(lambda: kernel.told == [(1, 5)], "the next one is told")
