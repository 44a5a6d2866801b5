#!/usr/bin/env python3
"""What pools cost that nobody uses: the CPU time of their daemons, of an empty pool and of one with many files.

    bench/idle.py                         by default 100,000 files with 1.5 GiB, 30 seconds each, three times
    bench/idle.py --files 10000 --json

A daemon looks at all processes of the host, whatever its pool holds; what the files cost, with all comparisons of the
books, is the difference of the two. Needs root.
"""

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click
import psutil
import report
from contenders import sharedfs
from rich.console import Console
from rich.table import Table

from sharedfs.api.unix_client import ask
from sharedfs.common import paths
from sharedfs.linux.mountinfo import mount_at

EMPTY, FULL = "empty", "with files"
ALL = "all"
_FILES_OF_A_DIRECTORY = 1000
_SETTLING_SECONDS = 15.0  # what was written of late is looked at more often


def make_files(place: Path, files: int, mebibytes: int) -> None:
    content = bytes((mebibytes << 20) // files)
    for number in range(files):
        directory = place / str(number // _FILES_OF_A_DIRECTORY)
        if number % _FILES_OF_A_DIRECTORY == 0:
            directory.mkdir()
        fd = os.open(directory / str(number), os.O_WRONLY | os.O_CREAT)
        os.write(fd, content)
        os.close(fd)


def daemon_of(place: Path) -> psutil.Process:
    mount = mount_at(str(place))
    assert mount is not None
    status = ask(paths.feed_socket(mount.source), "GET", "/v1/status", timeout_seconds=10).json()
    return psutil.Process(status["daemon_pid"])


def cpu_seconds(daemon: psutil.Process) -> dict[str, float]:
    """Of a daemon: its main thread, what answers requests, all that looks again and again, and its children.

    What looks does so in threads of Trio's, which come and go: that is what is left of the process's time.
    """
    own = daemon.cpu_times()
    main = requests = 0.0
    for thread in daemon.threads():
        try:
            name = Path(f"/proc/{daemon.pid}/task/{thread.id}/comm").read_text()
        except OSError:  # it has ended
            continue
        if thread.id == daemon.pid:
            main = thread.user_time + thread.system_time
        elif not name.startswith("Trio"):
            requests += thread.user_time + thread.system_time
    of_children = own.children_user + own.children_system
    for child in daemon.children():
        times = child.cpu_times()
        of_children += times.user + times.system
    whole = own.user + own.system
    parts = {"its main thread": main, "requests, records of mappings": requests, "scans": whole - main - requests}
    return {**parts, "the process that looks at others": of_children, ALL: whole + of_children}


def percent(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {what: 100 * (value - before.get(what, 0.0)) / seconds for what, value in after.items()}


@click.command(epilog="Example: bench/idle.py --files 20000 --seconds 60 --rounds 1")
@click.option("--files", default=100_000, show_default=True, type=click.IntRange(1), help="In the pool that has some.")
@click.option("--mebibytes", default=1536, show_default=True, type=click.IntRange(1), help="In all of them.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(1), help="That each is watched.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of each.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
@report.out_option
def main(files: int, mebibytes: int, seconds: float, rounds: int, as_json: bool, out: Path) -> None:
    """Compare the daemon of a pool with many files that nobody uses to that of an empty one."""
    figures: defaultdict[str, dict[str, list[float]]] = defaultdict(lambda: {EMPTY: [], FULL: []})
    with ExitStack() as resources:
        base = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-")))
        for side in (EMPTY, FULL):
            # One at a time: two daemons would each look at the other's processes.
            with sharedfs(base / side, "--size", f"{2 * mebibytes}M") as place:
                if side == FULL:
                    click.echo(f"making {files:,} files", err=True)
                    make_files(place, files, mebibytes)
                daemon = daemon_of(place)
                time.sleep(_SETTLING_SECONDS)
                for _ in range(rounds):
                    before, began = cpu_seconds(daemon), time.monotonic()
                    time.sleep(seconds)
                    found = percent(before, cpu_seconds(daemon), time.monotonic() - began)
                    for what, value in found.items():
                        figures[what][side].append(value)
                    click.echo(f"{side}: {found[ALL]:.2f} % of a core", err=True)
    settings = {"files": files, "mebibytes": mebibytes, "seconds": seconds, "kernel": os.uname().release}
    rounds_of = {what: {side: values or [0.0] for side, values in sides.items()} for what, sides in figures.items()}
    data = report.save(out, "idle", settings, rounds_of, "% of a core")
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    table = Table(f"{files:,} files, {mebibytes:,} MiB; % of a core", EMPTY, FULL, "difference", box=None)
    for what, sides in data["medians"].items():
        table.add_row(what, *(f"{value:.2f}" for value in (sides[EMPTY], sides[FULL], sides[FULL] - sides[EMPTY])))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
