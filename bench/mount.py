#!/usr/bin/env python3
"""The data path beside plain tmpfs and other FUSE filesystems, by turns in one run: fio, medians, ratios, goals.

    bench/mount.py                      a table; bench-results/mount.json and mount.svg
    bench/mount.py --json --rounds 5    JSON on standard output instead of the table

Needs root, fio (Debian's package), and the package installed; see contenders.py. Rounds of all alternate, so that a
busy moment of the machine hits all. "no ledger" is a pool whose books are told nothing: what accounting costs.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import report
from contenders import C_EXAMPLE, PYTHON_EXAMPLE, filesystems
from report import Goal
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

FILE_BYTES = 256 << 20
# pyfuse3's example copies the whole file at each request.
SMALL_FILE_BYTES = 16 << 20
EXACT, FAST, HUGE, NO_LEDGER = "sharedfs", "--reads fast", "--huge", "no ledger"
POOLS: dict[str, Sequence[str]] = {EXACT: (), FAST: ("--reads", "fast"), HUGE: ("--huge",)}


@dataclass(frozen=True)
class Case:
    """One fio job; `unit` is what its figure counts, `pools` says which ones it is of interest for."""

    title: str
    rw: str
    block: str
    engine: str
    unit: str
    pools: tuple[str, ...]


READ_4K, WRITE_4K = "4 KiB random read, IOPS", "4 KiB random write, IOPS"
READ_1M, WRITE_1M = "1 MiB sequential read, MB/s", "1 MiB sequential write, MB/s"
MAP_READ, MAP_WRITE = "4 KiB random mmap read, IOPS", "4 KiB random mmap write, IOPS"

CASES = (
    Case(READ_4K, "randread", "4k", "psync", "IOPS", (EXACT, FAST, NO_LEDGER)),
    Case(WRITE_4K, "randwrite", "4k", "psync", "IOPS", (EXACT, NO_LEDGER)),
    Case(READ_1M, "read", "1m", "psync", "MB/s", (EXACT, FAST, HUGE, NO_LEDGER)),
    Case(WRITE_1M, "write", "1m", "psync", "MB/s", (EXACT, HUGE, NO_LEDGER)),
    Case(MAP_READ, "randread", "4k", "mmap", "IOPS", (EXACT, HUGE)),
    Case(MAP_WRITE, "randwrite", "4k", "mmap", "IOPS", (EXACT, HUGE)),
)

GOALS = (
    Goal(READ_4K, EXACT, C_EXAMPLE, 1.2),
    Goal(WRITE_4K, EXACT, C_EXAMPLE, 1.0),
    Goal(READ_1M, EXACT, C_EXAMPLE, 2.5),
    Goal(WRITE_1M, EXACT, C_EXAMPLE, 1.2),
    Goal(WRITE_1M, EXACT, "tmpfs", 0.5),
    Goal(WRITE_1M, HUGE, C_EXAMPLE, 1.2),
    Goal(WRITE_1M, HUGE, "tmpfs", 0.5),
    Goal(READ_4K, FAST, "tmpfs", 0.8),
    Goal(READ_1M, FAST, "tmpfs", 0.97),
    Goal(MAP_READ, EXACT, "tmpfs", 1.0),
    Goal(MAP_WRITE, EXACT, "tmpfs", 1.0),
    Goal(MAP_READ, HUGE, "tmpfs", 1.2),
    Goal(MAP_WRITE, HUGE, "tmpfs", 1.2),
    Goal(READ_4K, EXACT, NO_LEDGER, 0.97),
    Goal(READ_4K, EXACT, "tmpfs"),
    Goal(WRITE_4K, EXACT, "tmpfs"),
    Goal(READ_4K, EXACT, PYTHON_EXAMPLE),
)


def measure(directory: Path, case: Case, seconds: float, size: int) -> float:
    """One round of a case: operations or megabytes a second."""
    command = ["fio", "--name=bench", f"--directory={directory}", f"--rw={case.rw}", f"--bs={case.block}"]
    command += [f"--ioengine={case.engine}", f"--size={size}", f"--runtime={seconds}", "--time_based"]
    command += ["--invalidate=0", "--randrepeat=1", "--output-format=json"]
    job = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["jobs"][0]
    side = job["read" if "read" in case.rw else "write"]
    return float(side["iops"] if case.unit == "IOPS" else side["bw_bytes"] / 1e6)


def takes_part(name: str, case: Case) -> bool:
    if name in (C_EXAMPLE, PYTHON_EXAMPLE):
        return case.engine != "mmap"  # the one cannot be mapped shared, the other would show the kernel's page cache
    return name == "tmpfs" or name in case.pools


@click.command(epilog="Example: bench/mount.py --rounds 5 --seconds 3")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, type=float, help="Duration of one round of one case.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
@report.out_option
def main(rounds: int, seconds: float, as_json: bool, out: Path) -> None:
    """Compare pools with plain tmpfs and FUSE filesystems of others: reads, writes and mapped access."""
    if shutil.which("fio") is None:
        raise click.UsageError("fio is missing: apt-get install fio")
    figures: dict[str, dict[str, list[float]]] = {case.title: {} for case in CASES}
    with (
        filesystems(POOLS, without_ledger=NO_LEDGER) as places,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        names = [(case, name) for case in CASES for name in places if takes_part(name, case)]
        task = progress.add_task("measuring", total=len(names) * rounds)
        if PYTHON_EXAMPLE in places:  # fio would lay it out in pieces of 4 KiB
            (places[PYTHON_EXAMPLE] / "bench.0.0").write_bytes(bytes(SMALL_FILE_BYTES))
        for case in CASES:
            for _ in range(rounds):
                for name in (name for of, name in names if of is case):
                    size = SMALL_FILE_BYTES if name == PYTHON_EXAMPLE else FILE_BYTES
                    figures[case.title].setdefault(name, []).append(measure(places[name], case, seconds, size))
                    progress.advance(task)
    settings = {"rounds": rounds, "seconds": seconds}
    data = report.save(out, "mount", settings, figures, "IOPS or MB/s", GOALS)
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        show(data["medians"], list(places))
        report.show(data["ratios"])


def show(medians: report.Medians, names: Sequence[str]) -> None:
    table = Table("case", *names, box=None)
    for case, sides in medians.items():
        table.add_row(case, *(f"{sides[name]:,.0f}" if name in sides else "" for name in names))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
