#!/usr/bin/env python3
"""Who uses how much of what many processes map: asked of the kernel (PSS), as exporters do, and of a pool.

    bench/mappers.py                   a table; bench-results/mappers.json and mappers.svg
    bench/mappers.py --json --processes 200 --mebibytes 64

Each process maps all of one file on the pool, and one of them makes and unmakes mappings all the time. PSS is read from
/proc/PID/smaps_rollup, of one process after the other. The pool's daemon has looked at the page tables before anybody
asks, every half second or, where that would take much of its time, every two: the last line has what a look takes,
of all processes of the host and with the books. Needs root.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import psutil
import report
from contenders import sharedfs
from report import Goal
from rich.console import Console
from rich.table import Table
from tenants import cgroups, joining

from sharedfs.api.unix_client import ask
from sharedfs.common import paths
from sharedfs.linux.mountinfo import mount_at

_TENANTS = 8
_MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
for offset in range(0, len(mapping), 4096): mapping[offset]
print("mapped", flush=True)
sys.stdin.readline()
"""
# To map and unmap it has to wait for who looks at its maps; it tells the longest wait.
_MAPPER_AT_WORK = _MAPPER.replace(
    "sys.stdin.readline()",
    """
import time
for line in sys.stdin:
    longest, end = 0, time.monotonic() + float(line)
    while time.monotonic() < end:
        started = time.perf_counter_ns()
        mmap.mmap(-1, 4096).close()
        longest = max(longest, time.perf_counter_ns() - started)
    print(longest, flush=True)
""",
)
ANSWER, STALL, LOOK = "to answer once, ms", "longest stall of a process meanwhile, ms", "CPU of a look at all, ms"
OURS, PSS = "sharedfs", "PSS"


@contextmanager
def mappers(file: Path, number: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """So many processes in _TENANTS cgroups; the first of them works."""
    with cgroups(*map(str, range(_TENANTS))) as tenants, ExitStack() as resources:
        started: list[subprocess.Popen[str]] = []
        for index in range(number):
            code = _MAPPER if index else _MAPPER_AT_WORK
            command = joining(tenants[index % _TENANTS], sys.executable, "-S", "-E", "-c", code, str(file))
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            resources.callback(process.communicate)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != "mapped\n":
                raise click.ClickException("a process could not map the file: is this Linux 6.9 or later?")
        yield started


def stall_ms(worker: "subprocess.Popen[str]", seconds: float, meanwhile: Callable[[float], None]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{seconds}\n")
    worker.stdin.flush()
    meanwhile(time.monotonic() + seconds)
    return int(worker.stdout.readline()) / 1e6


def read_pss(processes: list["subprocess.Popen[str]"]) -> int:
    """The sum over all, in KiB."""
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def ask_pool(name: str) -> int:
    """The bytes of the pool that somebody uses."""
    holdings = ask(paths.feed_socket(name), "GET", "/v1/holdings", timeout_seconds=10).json()
    return sum(int(held["bytes"]) for held in holdings["classes"] if held["payers"])


def repeated(question: Callable[[], object]) -> Callable[[float], None]:
    def ask_until(end: float) -> None:
        while time.monotonic() < end:
            question()

    return ask_until


def measured_ms(question: Callable[[], object]) -> float:
    started = time.perf_counter()
    question()
    return 1000 * (time.perf_counter() - started)


def look_ms(name: str, seconds: float) -> float:
    """What the pool's daemon takes for a scan, while nothing but its scans happens."""

    def taken() -> tuple[int, float]:
        status = ask(paths.feed_socket(name), "GET", "/v1/status", timeout_seconds=10).json()
        times = psutil.Process(status["daemon_pid"]).cpu_times()
        return status["mapping_scans"], times.user + times.system

    scans, cpu_seconds = taken()
    time.sleep(seconds)
    more_scans, more_seconds = taken()
    return 1000 * (more_seconds - cpu_seconds) / (more_scans - scans)


@click.command(epilog="Example: bench/mappers.py --processes 250 --mebibytes 64")
@click.option("--processes", default=100, show_default=True, type=click.IntRange(1), help="That map the file.")
@click.option("--mebibytes", default=256, show_default=True, type=click.IntRange(1, 900), help="Of the file.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Of all, by turns.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.5), help="Of each measured stall.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
@report.out_option
def main(processes: int, mebibytes: int, rounds: int, seconds: float, as_json: bool, out: Path) -> None:
    """Compare what it takes to know who uses how much of a file that many processes map."""
    figures: dict[str, dict[str, list[float]]] = {case: {OURS: [], PSS: []} for case in (ANSWER, STALL, LOOK)}
    with tempfile.TemporaryDirectory(prefix="sharedfs-bench-") as base, sharedfs(Path(base, "pool")) as pool:
        mount = mount_at(str(pool))
        assert mount is not None
        name = mount.source
        file = pool / "file"
        file.write_bytes(bytes(mebibytes << 20))
        with mappers(file, processes) as running:
            while ask_pool(name) < mebibytes << 20:
                time.sleep(0.1)
            questions: dict[str, Callable[[], object]] = {OURS: lambda: ask_pool(name), PSS: lambda: read_pss(running)}
            for _ in range(rounds):
                for side, question in questions.items():
                    took = measured_ms(question)
                    figures[ANSWER][side].append(took)
                    figures[STALL][side].append(stall_ms(running[0], seconds, repeated(question)))
                figures[LOOK][OURS].append(look_ms(name, seconds + 2))
                figures[LOOK][PSS].append(figures[ANSWER][PSS][-1])
    settings = {"processes": processes, "mebibytes": mebibytes, "rounds": rounds, "kernel": os.uname().release}
    goals = [Goal(case, PSS, OURS) for case in figures]
    data = report.save(out, "mappers", settings, figures, "of the line's unit", goals, scale="log")
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    table = Table(f"{processes} processes map {mebibytes} MiB", OURS, PSS, box=None)
    for case, sides in data["medians"].items():
        table.add_row(case, *(f"{sides[side]:,.2f}" for side in (OURS, PSS)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
