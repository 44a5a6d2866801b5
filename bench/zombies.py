#!/usr/bin/env python3
"""What removed cgroups cost while shared files keep them, on the real kernel: upstream's reproduction, and a curve.

    bench/zombies.py breed            2,001 cgroups that wrote a shared file and went, on tmpfs and on a pool
    bench/zombies.py curve            what the kernel takes for everyday things beside 0, 500, ... 5,000 dying cgroups:
                                      a table; bench-results/zombies.json and zombies.svg

Needs root, and for `breed` the package installed. All that is made is removed, and with its files the zombies go.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from contenders import sharedfs, tmpfs
from report import out_option, save
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy, dying_memcgs, find_memory_hierarchy

UPSTREAMS_CYCLES = 2001  # of the reproduction that came with the kernel's patches for reparenting LRU pages
PAGE = os.sysconf("SC_PAGE_SIZE")
RECLAIMED_BYTES = 16 << 20
CACHED_BYTES = 64 << 20
SETTLE_SECONDS = 15.0
CURVE = (0, 500, 1000, 2000, 5000)

Progressed = Callable[[], None]


class Groups:
    """Memory cgroups below a directory of the benchmark's own."""

    def __init__(self, hierarchy: MemoryHierarchy, name: str) -> None:
        self.hierarchy = hierarchy
        self.directory = hierarchy.directory(name)
        self.directory.mkdir()
        hierarchy.enable_memory(f"{name}/any")

    def dying(self) -> int:
        """On v1 the kernel counts the host's: others' that come and go meanwhile are in it."""
        return dying_memcgs(self.hierarchy, self.directory)

    def run_in(self, name: str, work: Callable[[], None]) -> None:
        """Do `work` in a process that joined a new cgroup before; the cgroup stays."""
        (self.directory / name).mkdir(exist_ok=True)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                (self.directory / name / "cgroup.procs").write_text("0")
                work()
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(process, 0)[1] != 0:
            raise click.ClickException(f"the process in {self.directory / name} failed")

    def breed(self, file: Path, number: int, progressed: Progressed) -> None:
        """`number` times: make a cgroup, write one more page of the shared file from it, remove it."""
        for _ in range(number):
            self.run_in("payer", lambda: _append_page(file))
            remove(self.directory / "payer")
            progressed()


def _append_page(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, bytes(PAGE))


def remove(directory: Path) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while directory.exists():
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.0005)


@contextmanager
def groups() -> Iterator[Groups]:
    name = f"sharedfs-bench-zombies-{os.getpid()}"
    made = Groups(find_memory_hierarchy(), name)
    try:
        yield made
    finally:
        for child in [entry for entry in made.directory.iterdir() if entry.is_dir()]:
            remove(child)
        remove(made.directory)


def kernel_bytes() -> int:
    """Memory of the kernel's own that cgroups take: per-cpu areas, and slabs that cannot be reclaimed."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(rows[key].split()[0]) * 1024 for key in ("Percpu", "SUnreclaim"))


def settled(read: Callable[[], int]) -> int:
    """A figure when it stands still, for cgroups are taken apart in the background; the smallest, if it never does."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last, since, least = read(), time.monotonic(), read()
    while time.monotonic() < deadline and time.monotonic() - since < 1.5:
        time.sleep(0.1)
        now = read()
        least = min(least, now)
        if now != last:
            last, since = now, time.monotonic()
    return last if time.monotonic() < deadline else least


# -- Upstream's reproduction -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bred:
    filesystem: str
    cycles: int
    seconds: float
    zombies: int
    kernel_bytes: int
    zombies_without_file: int


def breed_on(name: str, place: Path, made: Groups, cycles: int, progressed: Progressed) -> Bred:
    file = place / "shared"
    before, kernel_before = settled(made.dying), kernel_bytes()
    started = time.monotonic()
    made.breed(file, cycles, progressed)
    seconds = time.monotonic() - started
    left, kernel_left = settled(made.dying) - before, kernel_bytes() - kernel_before
    file.unlink()
    return Bred(name, cycles, seconds, left, kernel_left, settled(made.dying) - before)


@click.group(epilog="Example: bench/zombies.py breed --cycles 500")
def main() -> None:
    """What removed cgroups cost while shared files keep them, on the real kernel."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


@main.command(epilog="Example: bench/zombies.py breed --json")
@click.option("--cycles", default=UPSTREAMS_CYCLES, show_default=True, type=click.IntRange(1, 50_000))
@as_json
def breed(cycles: int, as_json: bool) -> None:
    """Make a cgroup, write a shared file from it, remove it, again and again: on tmpfs and on a pool."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-")))
        places = {
            "tmpfs": stack.enter_context(tmpfs(base / "tmpfs")),
            "sharedfs": stack.enter_context(sharedfs(base / "pool")),
        }
        made = stack.enter_context(groups())
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = progress.add_task("breeding", total=cycles * len(places))
        rows = [breed_on(name, place, made, cycles, lambda: progress.advance(task)) for name, place in places.items()]
    if as_json:
        click.echo(json.dumps({"kernel": os.uname().release, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    table = Table("", "cycles", "s", "zombies left", "kernel memory they take", "left when the file is gone", box=None)
    for row in rows:
        figures = (f"{row.zombies:,}", f"{row.kernel_bytes / 2**20:,.1f} MiB", f"{row.zombies_without_file:,}")
        table.add_row(row.filesystem, f"{row.cycles:,}", f"{row.seconds:.1f}", *figures)
    Console(width=140).print(table)
    if rows[0].zombies < cycles // 2:
        click.echo(f"Linux {os.uname().release} does not breed zombies this way.")


# -- The curve ---------------------------------------------------------------------------------------------------------


ABOVE, ROOT, MAKE, RECLAIM = (
    "memory.stat of the cgroup above them, us",
    "memory.stat of the root, us",
    "make a cgroup, us",
    "reclaim 16 MiB, us",
)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - started) / 1000


class Everyday:
    """What is timed: done below the directory in which the dying cgroups were."""

    def __init__(self, made: Groups, cache: Path) -> None:
        self._made = made
        self._cache = cache
        cache.write_bytes(bytes(CACHED_BYTES))
        descriptor = os.open(cache, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Microseconds of each round, by what is done."""
        directory, root = self._made.directory, self._made.hierarchy.mount
        return {
            ABOVE: self._times(rounds, (directory / "memory.stat").read_bytes),
            ROOT: self._times(rounds, (root / "memory.stat").read_bytes),
            MAKE: self._times(rounds, (directory / "made").mkdir, after=lambda: remove(directory / "made")),
            RECLAIM: self._times(max(3, rounds // 10), self._reclaim, before=self._fill),
        }

    @staticmethod
    def _times(
        rounds: int,
        work: Callable[[], object],
        after: Callable[[], object] = lambda: None,
        before: Callable[[], object] = lambda: None,
    ) -> list[float]:
        times = []
        for _ in range(rounds):
            before()
            times.append(timed(work))
            after()
        return times

    def _fill(self) -> None:
        """Page cache that can be reclaimed, charged to a cgroup that lives beside the dying ones."""

        def read() -> None:
            descriptor = os.open(self._cache, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while os.read(descriptor, 1 << 20):
                pass

        self._made.run_in("reader", read)

    def _reclaim(self) -> None:
        """Take RECLAIMED_BYTES from the directory: by its limit on v1, which reclaims down to what is asked for."""
        directory = self._made.directory
        if self._made.hierarchy.version is CgroupVersion.V2:
            (directory / "memory.reclaim").write_text(str(RECLAIMED_BYTES))
            return
        limit = directory / "memory.limit_in_bytes"
        usage_bytes = int((directory / "memory.usage_in_bytes").read_text())
        try:
            limit.write_text(str(usage_bytes - RECLAIMED_BYTES))
        finally:
            limit.write_text("-1")


@main.command(epilog="Example: bench/zombies.py curve --at 0 --at 1000 --json")
@click.option("--at", "numbers", multiple=True, type=click.IntRange(0, 50_000), default=CURVE, show_default=True)
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(10))
@as_json
@out_option
def curve(numbers: Sequence[int], rounds: int, as_json: bool, out: Path) -> None:
    """Time reading memory.stat, making a cgroup and reclaiming 16 MiB, beside more and more dying cgroups."""
    figures: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-")))
        made = stack.enter_context(groups())
        cache = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-", dir="/var/tmp"))) / "cache"
        )
        file = stack.enter_context(tmpfs(base / "tmpfs")) / "shared"
        everyday = Everyday(made, cache)
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = progress.add_task("breeding and timing", total=max(numbers) + 1)
        bred, before = 0, settled(made.dying)
        for number in sorted(set(numbers)):
            made.breed(file, number - bred, lambda: progress.advance(task))
            bred = number
            left = max(0, settled(made.dying) - before)
            if left < number // 2:
                raise click.ClickException(
                    f"Linux {os.uname().release} does not breed zombies: {left} of {number} stay"
                )
            for case, times in everyday.measure(rounds).items():
                figures.setdefault(case, {})[f"{number:,}"] = times
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    settings = {"kernel": os.uname().release, "cpus": os.cpu_count(), "rounds": rounds}
    told = save(out, "zombies", settings, figures, "beside so many dying cgroups")
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    table = Table("dying cgroups", *figures, box=None)
    for dying in figures[RECLAIM]:
        table.add_row(dying, *(f"{sides[dying]:,.0f}" for sides in told["medians"].values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
