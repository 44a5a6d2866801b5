#!/usr/bin/env python3
"""The mount's namespace beside plain tmpfs and libfuse's C example passthrough_ll: names made, found, listed, removed.

    bench/namespace.py                      a table
    bench/namespace.py --json --rounds 5    for machines

Needs root, gcc and Debian's libfuse3-dev with its examples (without them passthrough_ll is left out), and the package
installed. All filesystems are made and removed here. Rounds alternate, so that a busy moment of the machine hits all.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from contenders import filesystems
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
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, files: int, as_json: bool) -> None:
    """Compare a pool's namespace with plain tmpfs and libfuse's passthrough_ll."""
    figures: dict[str, dict[str, list[float]]] = {title: {} for title in CASES}
    with filesystems({"sharedfs": ()}) as places:
        for _ in range(rounds):
            for name, place in places.items():
                for title, rate in measure(place, files).items():
                    figures[title].setdefault(name, []).append(rate)
    medians = {
        title: {name: statistics.median(values) for name, values in sides.items()} for title, sides in figures.items()
    }
    if as_json:
        click.echo(json.dumps({"rounds": rounds, "files": files, "figures": figures, "medians": medians}, indent=2))
        return
    others = [name for name in places if name != "sharedfs"]
    table = Table("operations a second", *places, *(f"of {name}" for name in others), box=None)
    for title, rates in medians.items():
        ratios = (f"{rates['sharedfs'] / rates[name]:.2f}" for name in others)
        table.add_row(title, *(f"{rates[name]:,.0f}" for name in places), *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
