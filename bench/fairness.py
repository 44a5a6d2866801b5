#!/usr/bin/env python3
"""What a quiet tenant's reads take, alone and beside a tenant that floods the mount.

    bench/fairness.py                          a table; bench-results/fairness.json and fairness.svg
    bench/fairness.py --json --flooders 64     JSON on standard output instead of the table

The quiet tenant reads 4 KiB now and then; the flooding one reads from many threads without a pause. Each is a cgroup of
its own. "first come" has both in one cgroup: there are no turns to take then, and the quiet one waits behind the flood.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import report
from contenders import sharedfs
from rich.console import Console
from rich.table import Table
from tenants import cgroups, joining

_FILE_BYTES = 64 << 20
_QUIET = """
import json, os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
took = []
for _ in range(int(sys.argv[2])):
    time.sleep(0.001)
    offset = random.randrange(16384) * 4096
    started = time.perf_counter_ns()
    os.pread(fd, 4096, offset)
    took.append(time.perf_counter_ns() - started)
print(json.dumps(took))
"""


@contextmanager
def flood(cgroup: Path, file: Path, threads: int) -> Iterator[None]:
    fio = ["fio", "--name=flood", f"--filename={file}", f"--size={_FILE_BYTES}", "--rw=randread", "--bs=4k"]
    fio += ["--ioengine=psync", "--thread", f"--numjobs={threads}", "--time_based", "--runtime=600", "--invalidate=0"]
    process = subprocess.Popen(joining(cgroup, *fio), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def quiet(cgroup: Path, file: Path, reads: int) -> list[int]:
    """How long each read took, in nanoseconds."""
    command = joining(cgroup, sys.executable, "-c", _QUIET, str(file), str(reads))
    took: list[int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return took


@click.command(epilog="Example: bench/fairness.py --flooders 64")
@click.option("--flooders", default=32, show_default=True, type=click.IntRange(1), help="Threads that flood.")
@click.option("--reads", default=1000, show_default=True, type=click.IntRange(10), help="Reads of the quiet tenant.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
@report.out_option
def main(flooders: int, reads: int, as_json: bool, out: Path) -> None:
    """Measure a quiet tenant's latency with and without a flooding neighbour."""
    with tempfile.TemporaryDirectory(prefix="sharedfs-bench-") as base, sharedfs(Path(base, "pool")) as pool:
        file = pool / "file"
        file.write_bytes(bytes(_FILE_BYTES))
        with cgroups("quiet", "flood") as (quiet_cgroup, flood_cgroup):
            took = {"alone": quiet(quiet_cgroup, file, reads)}
            with flood(flood_cgroup, file, flooders):
                took["beside a flood"] = quiet(quiet_cgroup, file, reads)
                took["first come (one cgroup)"] = quiet(flood_cgroup, file, reads)
    figures = {
        "p50": {name: [statistics.median(values) / 1000] for name, values in took.items()},
        "p99": {name: [statistics.quantiles(values, n=100)[98] / 1000] for name, values in took.items()},
    }
    settings = {"flooders": flooders, "reads": reads}
    data = report.save(out, "fairness", settings, figures, "us for a 4 KiB read of the quiet tenant")
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    table = Table("4 KiB read of the quiet tenant", "p50, us", "p99, us", box=None)
    for name in took:
        table.add_row(name, *(f"{data['medians'][what][name]:,.0f}" for what in ("p50", "p99")))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
