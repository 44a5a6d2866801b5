#!/usr/bin/env python3
"""The data path beside plain tmpfs and libfuse's C example passthrough_ll, by turns in one run: fio, medians, ratios.

    bench/mount.py                      a table
    bench/mount.py --json --rounds 5    for machines

Needs root, fio (Debian's package), and the package installed; see contenders.py. Rounds of all alternate, so that a
busy moment of the machine hits all. "no ledger" is a pool whose books are told nothing: what accounting costs.
"""

import json
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click
from contenders import C_EXAMPLE, filesystems
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

FILE = "256m"
EXACT, FAST, NO_LEDGER = "sharedfs", "--reads fast", "no ledger"


@dataclass(frozen=True)
class Case:
    """One fio job; `unit` is what its figure counts."""

    title: str
    rw: str
    block: str
    engine: str
    unit: str


CASES = (
    Case("4 KiB random read", "randread", "4k", "psync", "IOPS"),
    Case("4 KiB random write", "randwrite", "4k", "psync", "IOPS"),
    Case("1 MiB sequential read", "read", "1m", "psync", "MB/s"),
    Case("1 MiB sequential write", "write", "1m", "psync", "MB/s"),
    Case("4 KiB random mmap read", "randread", "4k", "mmap", "IOPS"),
    Case("4 KiB random mmap write", "randwrite", "4k", "mmap", "IOPS"),
)


def measure(directory: Path, case: Case, seconds: float) -> float:
    """One round of a case: operations or megabytes a second."""
    command = ["fio", "--name=bench", f"--directory={directory}", f"--rw={case.rw}", f"--bs={case.block}"]
    command += [f"--ioengine={case.engine}", f"--size={FILE}", f"--runtime={seconds}", "--time_based"]
    command += ["--invalidate=0", "--randrepeat=1", "--output-format=json"]
    job = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["jobs"][0]
    side = job["read" if "read" in case.rw else "write"]
    return float(side["iops"] if case.unit == "IOPS" else side["bw_bytes"] / 1e6)


@click.command(epilog="Example: bench/mount.py --rounds 5 --seconds 3")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, type=float, help="Duration of one round of one case.")
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, seconds: float, as_json: bool) -> None:
    """Compare pools with plain tmpfs and passthrough_ll: reads, writes and mapped access."""
    if shutil.which("fio") is None:
        raise click.UsageError("fio is missing: apt-get install fio")
    figures: dict[str, dict[str, list[float]]] = {case.title: {} for case in CASES}
    pools = {EXACT: (), FAST: ("--reads", "fast")}
    with (
        filesystems(pools, without_ledger=NO_LEDGER) as places,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("measuring", total=len(CASES) * rounds * len(places))
        for case in CASES:
            for _ in range(rounds):
                for name, directory in places.items():
                    progress.advance(task)
                    if name != C_EXAMPLE or case.engine != "mmap":  # it cannot be mapped shared
                        figures[case.title].setdefault(name, []).append(measure(directory, case, seconds))
    medians = {
        title: {name: statistics.median(values) for name, values in sides.items()} for title, sides in figures.items()
    }
    if as_json:
        click.echo(json.dumps({"rounds": rounds, "seconds": seconds, "figures": figures, "medians": medians}, indent=2))
        return
    table = Table("case", "unit", *places, "of tmpfs", f"of {C_EXAMPLE}", "fast of tmpfs", "of no ledger", box=None)
    for case in CASES:
        sides = medians[case.title]

        def ratio(side: str, other: str, sides: dict[str, float] = sides) -> str:
            return f"{sides[side] / sides[other]:.2f}" if other in sides else ""

        cells = (f"{sides[name]:,.0f}" if name in sides else "" for name in places)
        ratios = (ratio(EXACT, "tmpfs"), ratio(EXACT, C_EXAMPLE), ratio(FAST, "tmpfs"), ratio(EXACT, NO_LEDGER))
        table.add_row(case.title, case.unit, *cells, *ratios)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
