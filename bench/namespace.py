#!/usr/bin/env python3
"""The mount's namespace beside plain tmpfs and FUSE filesystems of others: names made, found, listed, removed.

    bench/namespace.py                      a table; bench-results/namespace.json and namespace.svg
    bench/namespace.py --json --rounds 5    JSON on standard output instead of the table

Needs root, gcc and Debian's libfuse3-dev with its examples (without them passthrough_ll is left out), and the package
installed. All filesystems are made and removed here. Rounds alternate, so that a busy moment of the machine hits all.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import report
from contenders import C_EXAMPLE, PYTHON_EXAMPLE, filesystems
from report import Goal
from rich.console import Console
from rich.table import Table


def _create(names: list[bytes]) -> None:
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def _stat(names: list[bytes]) -> None:
    for name in names:
        os.stat(name)


def _open(names: list[bytes]) -> None:
    for name in names:
        os.close(os.open(name, os.O_RDONLY))


def _list(names: list[bytes]) -> None:
    if len(os.listdir(os.path.dirname(names[0]))) != len(names):
        raise RuntimeError("a listing is not complete")


def _scan(names: list[bytes]) -> None:
    with os.scandir(os.path.dirname(names[0])) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


def _rename(names: list[bytes]) -> None:
    for name in names:
        os.rename(name, name + b"-renamed")


def _unlink(names: list[bytes]) -> None:
    for name in names:
        os.unlink(name + b"-renamed")


CASES: dict[str, Callable[[list[bytes]], None]] = {
    "create": _create,
    "stat": _stat,
    "open and close": _open,
    "readdir": _list,
    "readdir and stat": _scan,
    "rename": _rename,
    "unlink": _unlink,
}


EXACT = "sharedfs"
GOALS = (
    *(Goal(case, EXACT, C_EXAMPLE, 1.0 if case == "stat" else 0.5) for case in CASES),
    *(Goal(case, EXACT, "tmpfs") for case in CASES),
)
# pyfuse3's example keeps all in SQLite: it gets a part of the files, so that a round ends.
SLOWER = 20


def measure(place: Path, files: int) -> dict[str, float]:
    """One round in a new directory: operations a second of each case."""
    directory = Path(tempfile.mkdtemp(dir=place))
    names = [os.fsencode(directory / f"file-{number:06}") for number in range(files)]
    figures = {}
    for title, work in CASES.items():
        started = time.perf_counter()
        work(names)
        figures[title] = files / (time.perf_counter() - started)
    directory.rmdir()
    return figures


@click.command(epilog="Example: bench/namespace.py --rounds 5 --files 10000")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--files", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
@report.out_option
def main(rounds: int, files: int, as_json: bool, out: Path) -> None:
    """Compare a pool's namespace with plain tmpfs and FUSE filesystems of others."""
    figures: dict[str, dict[str, list[float]]] = {title: {} for title in CASES}
    with filesystems({EXACT: ()}) as places:
        for _ in range(rounds):
            for name, place in places.items():
                for title, rate in measure(place, files // SLOWER if name == PYTHON_EXAMPLE else files).items():
                    figures[title].setdefault(name, []).append(rate)
    data = report.save(out, "namespace", {"rounds": rounds, "files": files}, figures, "operations a second", GOALS)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    table = Table("operations a second", *places, box=None)
    for title, rates in data["medians"].items():
        table.add_row(title, *(f"{rates[name]:,.0f}" for name in places))
    Console(width=120).print(table)
    report.show(data["ratios"])


if __name__ == "__main__":
    main()
