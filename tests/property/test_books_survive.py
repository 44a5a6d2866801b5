"""The books after SIGKILL: a real process is killed at lines of our code, and at random moments; another goes on.

What the ledger means is said by its oracle. An operation that returned is in the books; of the one that was under way
each page has it or has it not; done again, it is complete.
"""

import mmap
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import sharedfs
from sharedfs.accounting.persistence import BooksState
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.page_ranges import LAST_PAGE
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from tests.property.ledger_oracle import Oracle
from tests.support.kills import killed_at_line, lines_of, run_in_child

OURS = str(Path(sharedfs.__file__).parent)
A, B, C = TenantId(1), TenantId(2), TenantId(3)
LINES_A_STEP = 10
Step = tuple[Any, ...]

STEPS: list[Step] = [
    ("charge", 1, 0, PAGES_PER_CHUNK + 99, A),
    ("charge", 2, 5, 5, B),
    ("touch", 1, 10, PAGES_PER_CHUNK + 20, B),
    ("touch", 1, 500, 500, C),
    ("set_mapped", 1, C, [(0, 2), (900, PAGES_PER_CHUNK + 30)]),
    ("charge", 1, PAGES_PER_CHUNK + 90, PAGES_PER_CHUNK + 130, B),
    ("charge", 2, 7, 7, A),
    ("age",),
    ("touch", 1, 0, LAST_PAGE, A),
    ("uncharge", 1, 300, PAGES_PER_CHUNK + 3),
    ("set_mapped", 1, C, []),
    ("hand_over", 1, B),
    ("exit", B),
    ("hand_over", 1, C),
    ("uncharge", 1, PAGES_PER_CHUNK + 100, None),
    ("exit", A),
    ("drop", 1),
    ("charge", 3, 0, 3, C),
]


@pytest.fixture
def state() -> Iterator[str]:
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield directory


def opened(directory: str, **bounds: int) -> tuple[BooksState, Ledger]:
    directory_fd = os.open(directory, os.O_RDONLY)
    kept = BooksState(directory_fd)
    os.close(directory_fd)
    return kept, Ledger(storage=kept.ledger, **bounds)


def do(books: Ledger | Oracle, steps: list[Step]) -> None:
    for operation, *operands in steps:
        getattr(books, operation)(*operands)


def pages_of(ledger: Ledger) -> dict[tuple[int, int], SharingClass]:
    return {
        (file, (index * PAGES_PER_CHUNK) + offset): ledger._table.held(raw)
        for file, pages in ledger._files.all()
        for index, chunk in pages._chunks.items()
        for offset, raw in enumerate(ledger._cells.ids(chunk).tolist())
        if raw
    }


def after(steps: list[Step]) -> dict[tuple[int, int], SharingClass]:
    oracle = Oracle()
    do(oracle, steps)
    return oracle.state()


@pytest.mark.parametrize("number", range(len(STEPS)))
@pytest.mark.parametrize("spare_ids", [0, 1024])  # with a compaction at each chance, and without one
def test_killed_at_any_line(number: int, spare_ids: int) -> None:
    earlier, step = STEPS[:number], STEPS[number]
    before, complete = after(earlier), after([*earlier, step])

    with TemporaryDirectory(dir="/dev/shm") as directory:
        _, ledger = opened(directory, spare_ids=spare_ids)
        do(ledger, earlier)
        lines = lines_of(lambda: do(ledger, [step]), OURS)
    chosen = random.Random(number).sample(range(lines), min(lines, LINES_A_STEP))
    for line in [0, *chosen, lines - 1]:
        with TemporaryDirectory(dir="/dev/shm") as directory:

            def work(directory: str = directory, line: int = line) -> None:
                _, ledger = opened(directory, spare_ids=spare_ids)
                do(ledger, earlier)
                killed_at_line(lambda: do(ledger, [step]), OURS, line)

            assert run_in_child(work) == -signal.SIGKILL
            kept, ledger = opened(directory, spare_ids=spare_ids)
            ledger.check()
            found = pages_of(ledger)
            for page in before.keys() | complete.keys() | found.keys():
                assert found.get(page) in (before.get(page), complete.get(page)), f"{page} at line {line}"
            if step != ("age",):
                do(ledger, [step])
                assert pages_of(ledger) == complete
            ledger.check()
            kept.close()


def random_step(generator: random.Random) -> Step:
    file, tenant = generator.randrange(4), TenantId(generator.randrange(1, 6))
    first = generator.randrange(3 * PAGES_PER_CHUNK)
    last = first + generator.choice([0, 0, 3, 40, PAGES_PER_CHUNK])
    kind = generator.randrange(18)
    if kind < 5:
        return "charge", file, first, last, generator.choice([tenant, NOBODY])
    if kind < 10:
        return "touch", file, first, last, tenant
    if kind < 16:
        return "set_mapped", file, tenant, [(first, last)] * generator.randrange(2)
    return generator.choice(
        [("uncharge", file, first, last), ("uncharge", file, first, None), ("drop", file), ("exit", tenant)]
    )


@pytest.mark.parametrize("most_classes", [8, 1 << 20])
def test_killed_at_any_moment(state: str, most_classes: int) -> None:
    """One history, by many processes: each goes on where the one before it was killed.

    With few classes allowed, what a file's unit of accounting is depends on how often a step was tried: then the pages
    that are there are compared, and I1, and not who uses them.
    """
    generator = random.Random(7)
    steps = [random_step(generator) for _ in range(20000)]
    bounds = {"spare_ids": 8, "most_classes": most_classes}
    done = mmap.mmap(-1, 8)
    acknowledged = memoryview(done).cast("q")
    oracle, in_oracle, compared = Oracle(), 0, 0
    for _ in range(20):

        def work() -> None:
            _, ledger = opened(state, **bounds)
            for number in range(acknowledged[0], len(steps)):
                do(ledger, [steps[number]])
                acknowledged[0] = number + 1

        child = os.fork()
        if not child:
            work()
            os._exit(1)
        start = acknowledged[0]
        while acknowledged[0] == start:  # until it is at work
            time.sleep(0)
        time.sleep(generator.random() * 0.01)  # any moment will do: that is the point
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        now = acknowledged[0]
        do(oracle, steps[in_oracle:now])
        in_oracle = now
        kept, ledger = opened(state, **bounds)
        ledger.check()
        do(ledger, [steps[now]])
        ledger.check()
        do(oracle, [steps[now]])
        in_oracle += 1
        acknowledged[0] = now + 1
        found, complete = pages_of(ledger), oracle.state()
        compared += len(found)
        assert found.keys() == complete.keys()
        if most_classes > 8:
            assert found == complete
        kept.close()
    assert acknowledged[0] > 100
    assert compared > 10000


def test_a_page_that_was_being_added_behind_a_gap_is_not_there(state: str) -> None:
    """Killed between the store of its cell and the one that says how many cells there are."""
    kept, ledger = opened(state)
    ledger.charge(1, 0, 0, A)
    ledger.charge(1, 1, 1, B)
    cells = kept.ledger.short.view.cast("I")
    cells[40] = cells[0]
    _, again = opened(state)
    again.check()
    again.charge(1, 50, 50, B)
    again.check()
    assert again.resident_bytes == 3 * mmap.PAGESIZE
