#!/usr/bin/env python3
"""What the ledger's operations cost: nanoseconds each, and bytes for a 1 GiB file shared by ten tenants; and a start.

    bench/ledger.py              what each costs; bench-results/ledger.json and ledger.svg

Each figure is the best of five runs, on one core, and includes 50 to 100 ns of this script's own loop. Compare runs of
one machine only.
"""

import os
import random
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns

import click
import report

from sharedfs.accounting.persistence import BooksState
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import NOBODY, TenantId

GIB_PAGES = 1 << 18
TENANTS = [TenantId(number) for number in range(1, 11)]
FILE = 1
FIGURES: dict[str, dict[str, list[float]]] = {}


def shared_uniformly() -> Ledger:
    """A dense GiB that all ten tenants touched, all of it: one class."""
    ledger = Ledger()
    for tenant in TENANTS:
        ledger.charge(FILE, 0, GIB_PAGES - 1, tenant)
    return ledger


def shared_at_random() -> Ledger:
    """A dense GiB each of whose pages was touched by a random subset of the ten: 1024 classes."""
    ledger = Ledger()
    ledger.charge(FILE, 0, GIB_PAGES - 1, NOBODY)
    generator = random.Random(20)
    for tenant in TENANTS:
        for page in range(GIB_PAGES):
            if generator.random() < 0.5:
                ledger.touch(FILE, page, page, tenant)
    return ledger


def show(name: str, number: float, unit: str) -> None:
    FIGURES.setdefault(unit, {})[name] = [number]
    print(f"{name:68} {number:12,.0f} {unit}")


def timed(name: str, times: int, operation: Callable[[int], object], prepare: Callable[[], object] = int) -> None:
    """Show the best of five for `operation(0)` .. `operation(times - 1)`, after `prepare` each time."""
    best = float("inf")
    for _ in range(5):
        prepare()
        start = perf_counter_ns()
        for turn in range(times):
            operation(turn)
        best = min(best, (perf_counter_ns() - start) / times)
    show(name, best, "ns")


def touches(name: str, ledger: Ledger) -> None:
    """Touches that change nothing; the second half of what is added is used by two tenants, its rest by one."""
    user, added = TENANTS[0], GIB_PAGES
    ledger.touch(FILE, 0, GIB_PAGES, user)
    timed(f"touch 1 page, used already, {name}", 100_000, lambda _: ledger.touch(FILE, 0, 0, user))
    timed(f"touch 256 pages, used already, {name}", 20_000, lambda _: ledger.touch(FILE, 512, 767, user))
    timed(f"touch the whole GiB, used already, {name}", 5, lambda _: ledger.touch(FILE, 0, GIB_PAGES - 1, user))
    ledger.charge(FILE, added, added + 1023, TENANTS[1])
    ledger.touch(FILE, added + 512, added + 1023, user)
    timed(
        f"touch 256 pages, used already, alike, in a file that is not, {name}",
        20_000,
        lambda _: ledger.touch(FILE, added + 600, added + 855, user),
    )


def first_touches() -> None:
    ledger = Ledger()

    def one_owner() -> None:
        ledger.drop(FILE)
        ledger.charge(FILE, 0, GIB_PAGES - 1, TENANTS[0])

    def by_turns(turn: int, pages: int) -> None:
        first_page = (turn >> 1) * pages
        ledger.touch(FILE, first_page, first_page + pages - 1, TENANTS[1 + (turn & 1)])

    timed("touch 1 page for the first time, two tenants by turns", 200_000, lambda turn: by_turns(turn, 1), one_owner)
    timed("touch 256 pages for the first time, two tenants by turns", 2000, lambda turn: by_turns(turn, 256), one_owner)


def charges() -> None:
    ledger, numbers = Ledger(), count(FILE + 1)

    def in_sequence(turn: int, pages: int) -> None:
        ledger.charge(FILE, turn * pages, turn * pages + pages - 1, TENANTS[0])

    def clear() -> None:
        ledger.drop(FILE)

    timed("charge 1 new page, in sequence", 200_000, lambda turn: in_sequence(turn, 1), clear)
    timed("charge 256 new pages, in sequence", 1000, lambda turn: in_sequence(turn, 256), clear)
    timed("charge 1 page of a new file", 20_000, lambda _: ledger.charge(next(numbers), 0, 0, TENANTS[0]))


def mappings(ledger: Ledger) -> None:
    whole, odd = [(0, GIB_PAGES - 1)], [(page, page + 15) for page in range(0, GIB_PAGES, 32)]
    first, second = TENANTS[:2]
    timed("set_mapped, whole GiB, by turns", 20, lambda turn: ledger.set_mapped(FILE, first, whole * (turn & 1)))
    timed("set_mapped, whole GiB, as before", 10_000, lambda _: ledger.set_mapped(FILE, first, whole))
    timed("set_mapped, 8192 ranges, by turns", 4, lambda turn: ledger.set_mapped(FILE, second, odd * (turn & 1)))
    timed("set_mapped, 8192 ranges, as before", 20, lambda _: ledger.set_mapped(FILE, second, odd))


def classes(name: str, build: Callable[[], Ledger]) -> None:
    best = dict.fromkeys(("age", "exit of one of ten", "check"), float("inf"))
    for _ in range(3):
        ledger = build()
        statistics = ledger.statistics()
        leave = partial(ledger.exit, TENANTS[3])
        operations: tuple[Callable[[], object], ...] = (ledger.age, leave, ledger.check)
        for title, operation in zip(best, operations, strict=True):
            start = perf_counter_ns()
            operation()
            best[title] = min(best[title], perf_counter_ns() - start)
    for title, nanoseconds in best.items():
        show(f"{title}, {name}", nanoseconds, "ns")
    show(f"page maps, {name}", statistics.page_map_bytes, "bytes")
    show(f"whole ledger, {name}, {statistics.classes} classes", statistics.memory_bytes, "bytes")


def spread_over_files(files: int, pages: int, chunk_classes: int) -> Callable[[Ledger], None]:
    """`files` of `pages` pages, each chunk of which has so many classes of pages."""

    def build(ledger: Ledger) -> None:
        for file in range(files):
            owner = TENANTS[file % 5]
            ledger.charge(file, 0, pages - 1, owner)
            for page in range(0, pages, PAGES_PER_CHUNK):
                for turn in range(chunk_classes - 1):
                    first = page + turn * min(pages, PAGES_PER_CHUNK) // chunk_classes
                    last = first + max(min(pages, PAGES_PER_CHUNK) // (2 * chunk_classes), 1) - 1
                    ledger.touch(file, first, last, TENANTS[5 + (file + turn) % 5])

    return build


def many_classes(ledger: Ledger) -> None:
    generator = random.Random(1)
    ledger.charge(FILE, 0, GIB_PAGES - 1, TENANTS[0])
    for page in range(14_000):
        for tenant in generator.sample(range(2, 30), 6):
            ledger.touch(FILE, page, page, TenantId(tenant))


def starts() -> None:
    """From an opened directory of state to books that answer, as after a daemon's death."""
    cases = {
        "100 GiB, all pages of a file alike": spread_over_files(100, GIB_PAGES, 1),
        "100 GiB, no chunk alike": spread_over_files(100, GIB_PAGES, 3),
        "100,000 files of two pages, each with two classes": spread_over_files(100_000, 2, 2),
        "one file with as many classes as are allowed, or nearly": many_classes,
    }
    for name, build in cases.items():
        with TemporaryDirectory(dir="/dev/shm") as directory:
            _reopened(directory, build)
            best = min(_reopened(directory) for _ in range(5))
            directory_bytes = sum(file.stat().st_blocks * 512 for file in Path(directory, "books").iterdir())
        show(f"start with {name}", best, "ns")
        show(f"state of {name}", directory_bytes, "bytes")


def _reopened(directory: str, build: Callable[[Ledger], None] | None = None) -> int:
    directory_fd = os.open(directory, os.O_RDONLY)
    start = perf_counter_ns()
    state = BooksState(directory_fd)
    ledger = Ledger(storage=state.ledger)
    took = perf_counter_ns() - start
    os.close(directory_fd)
    if build is not None:
        build(ledger)
    state.close()
    return took


@click.command(epilog="Example: bench/ledger.py --out /tmp/results")
@report.out_option
def main(out: Path) -> None:
    """Measure the ledger alone, without a mount."""
    builders = {"shared uniformly": shared_uniformly, "shared at random": shared_at_random}
    for name, build in builders.items():
        touches(name, build())
    first_touches()
    charges()
    mappings(shared_uniformly())
    for name, build in builders.items():
        classes(name, build)
    starts()
    report.save(out, "ledger", {}, FIGURES, "best of several", scale="log")


if __name__ == "__main__":
    main()
