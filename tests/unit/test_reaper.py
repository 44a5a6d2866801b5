"""Files come to the reaper from any thread, at any moment."""

import gc
import threading
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sharedfs.pages.reaper import Reaper

FILE_BYTES = 4096


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """The garbage collector may run Python code, and other threads with it, wherever something is allocated."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


def test_a_file_comes_while_those_that_wait_are_listed(eager_collector: None) -> None:
    questions = SimpleNamespace(resident_bytes_of=lambda _: FILE_BYTES)
    reaper = Reaper(cast(Any, None), cast(Any, SimpleNamespace(questions=questions)), cast(Any, None))
    for inode in range(40):
        reaper.add(inode, b"f")
    numbers, threads = count(1000), []

    def another(phase: str, _: object) -> None:
        if phase == "start" and len(threads) < 20:
            threads.append(threading.Thread(target=reaper.add, args=(next(numbers), b"f")))
            threads[-1].start()
            threads[-1].join(0.01)  # it comes now, or waits its turn

    gc.callbacks.append(another)
    try:
        listed = reaper.waiting_bytes
    finally:
        gc.callbacks.remove(another)
    for thread in threads:
        thread.join()
    assert threads, "no file came meanwhile"
    assert 40 * FILE_BYTES <= listed <= 60 * FILE_BYTES
