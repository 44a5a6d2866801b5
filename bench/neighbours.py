#!/usr/bin/env python3
"""What a quiet tenant waits for a read, a creation, a stat and a store to mapped memory beside each hostile tenant.

On a pool and on plain tmpfs by turns. Each is a cgroup of its own. Needs root, and free memory for two filesystems.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click
from contenders import sharedfs, tmpfs
from hostile import HOSTILE
from tenants import cgroups, joining

ROLES = Path(__file__).with_name("hostile.py")
ALONE = "alone"
_PERCENTILES = (50, 99, 99.9)
_TITLE = f"{'neighbour':<22} {'on':<6} {'operation':<9} {'p50':>9} {'p99':>9} {'p99.9':>9} {'longest':>9}  ms"


@contextmanager
def neighbour(name: str, cgroup: Path, place: Path, mib: int) -> Iterator[None]:
    """A hostile tenant that is at it; all its processes are ended, and its files removed, afterwards."""
    if name == ALONE:
        yield
        return
    below = place / "hostile"
    below.mkdir()
    process = subprocess.Popen(
        joining(cgroup, sys.executable, str(ROLES), name, str(below), str(mib)),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"SHAREDFS_BENCH_CGROUP": str(cgroup)},
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the tenant that {name} did not start")
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the tenant that {name} has ended")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(below)
        with suppress(OSError):
            (cgroup / "owner").rmdir()


def measured(cgroup: Path, place: Path, seconds: float) -> dict[str, list[float]]:
    command = joining(cgroup, sys.executable, str(ROLES), "quiet", str(place), str(seconds))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: sorted(took) for name, took in json.loads(done.stdout).items()}


def row(took: list[float]) -> list[float]:
    """Percentiles and the longest, in ms."""
    chosen = [took[min(len(took) - 1, int(len(took) * percent / 100))] for percent in _PERCENTILES]
    return [1000 * seconds for seconds in (*chosen, took[-1])]


@click.command(help=__doc__, epilog="Example: bench/neighbours.py --seconds 5 --only unlinks --only alone")
@click.option("--seconds", default=5.0, show_default=True, help="How long the quiet tenant measures beside each.")
@click.option("--mib", default=1024, show_default=True, type=click.IntRange(64), help="How large hostile files are.")
@click.option("--only", multiple=True, type=click.Choice([ALONE, *HOSTILE]), help="These neighbours; all by default.")
def main(seconds: float, mib: int, only: tuple[str, ...]) -> None:
    size = f"{2 * mib + 256}M"
    print(_TITLE)
    with ExitStack() as resources:
        base = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-")))
        quiet, hostile = resources.enter_context(cgroups("quiet", "hostile"))
        places = {
            "pool": resources.enter_context(sharedfs(base / "pool", "--size", size)),
            "tmpfs": resources.enter_context(tmpfs(base / "tmpfs", size)),
        }
        for name in only or (ALONE, *HOSTILE):
            for where, place in places.items():
                with neighbour(name, hostile, place, mib):
                    took = measured(quiet, place, seconds)
                for operation, times in took.items():
                    figures = " ".join(f"{figure:9.3f}" for figure in row(times))
                    print(f"{name:<22} {where:<6} {operation:<9} {figures}", flush=True)


if __name__ == "__main__":
    main()
