"""The mount against plain tmpfs, side by side in one run: fio, medians of several rounds, ratios.

    bench/mount.py                      a table
    bench/mount.py --json --rounds 5    for machines

Needs root, fio (Debian's package), and the package installed. Both filesystems are made and removed here. Rounds of the
two alternate, so that a busy moment of the machine hits both.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

FILE = "256m"


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


@contextmanager
def filesystems() -> Iterator[dict[str, Path]]:
    """A plain tmpfs and a pool, both of 1 GiB."""
    sharedfs = [sys.executable, "-m", "sharedfs"]
    with tempfile.TemporaryDirectory(prefix="sharedfs-bench-") as base:
        tmpfs, pool = Path(base, "tmpfs"), Path(base, "pool")
        tmpfs.mkdir()
        pool.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1G", "sharedfs-bench", str(tmpfs)], check=True)
        try:
            subprocess.run([*sharedfs, "mount", str(pool), "--size", "1G"], check=True)
            try:
                yield {"tmpfs": tmpfs, "sharedfs": pool}
            finally:
                subprocess.run([*sharedfs, "umount", str(pool)], check=True)
        finally:
            subprocess.run(["umount", str(tmpfs)], check=True)


@click.command(epilog="Example: bench/mount.py --rounds 5 --seconds 3")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, type=float, help="Duration of one round of one case.")
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, seconds: float, as_json: bool) -> None:
    """Compare a pool with plain tmpfs: reads, writes and mapped access."""
    if shutil.which("fio") is None:
        raise click.UsageError("fio is missing: apt-get install fio")
    figures: dict[str, dict[str, list[float]]] = {case.title: {} for case in CASES}
    with filesystems() as places, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(CASES) * rounds * len(places))
        for case in CASES:
            for _ in range(rounds):
                for name, directory in places.items():
                    figures[case.title].setdefault(name, []).append(measure(directory, case, seconds))
                    progress.advance(task)
    medians = {
        title: {name: statistics.median(values) for name, values in sides.items()} for title, sides in figures.items()
    }
    if as_json:
        click.echo(json.dumps({"rounds": rounds, "seconds": seconds, "figures": figures, "medians": medians}, indent=2))
        return
    table = Table("case", "unit", "tmpfs", "sharedfs", "ratio", box=None)
    for case in CASES:
        tmpfs, pool = medians[case.title]["tmpfs"], medians[case.title]["sharedfs"]
        table.add_row(case.title, case.unit, f"{tmpfs:,.0f}", f"{pool:,.0f}", f"{pool / tmpfs:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
