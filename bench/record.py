#!/usr/bin/env python3
"""What recording costs a pool: random 4 KiB reads of one file, while nobody records and while somebody does."""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

_FILE_BYTES = 64 << 20


@click.command(help=__doc__, epilog="Example: bench/record.py --rounds 3 --seconds 1")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds, each with and without.")
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0.1), help="Of each measurement.")
def main(rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:
        os.environ["SHAREDFS_RUN_DIR"] = f"{directory}/run"
        place = Path(directory) / "mnt"
        place.mkdir()
        _run("sharedfs", "mount", str(place), "--size", "128M", "--name", f"bench-{os.getpid()}")
        try:
            _compare(place / "file", Path(directory) / "trace.parquet", rounds, seconds)
        finally:
            _run("sharedfs", "umount", str(place))


def _compare(file: Path, trace: Path, rounds: int, seconds: float) -> None:
    file.write_bytes(bytes(_FILE_BYTES))
    without, beside = [], []
    sizes = []
    for _ in range(rounds):
        without.append(_reads(file, seconds))
        recorder = subprocess.Popen(
            [sys.executable, "-m", "controller.cli.main", "record", str(trace)], stdout=subprocess.PIPE
        )
        while not trace.exists():
            time.sleep(0.01)
        beside.append(_reads(file, seconds))
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=60)
        sizes.append(trace.stat().st_size / (beside[-1] * seconds))
        trace.unlink()
    off, on = statistics.median(without), statistics.median(beside)
    print(
        f"{off:,.0f} reads a second; {on:,.0f} while recorded ({on / off:.2f}), "
        f"{statistics.median(sizes):.1f} bytes each"
    )


def _reads(file: Path, seconds: float) -> float:
    fd = os.open(file, os.O_RDWR)
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        os.pread(fd, 4096, random.randrange(_FILE_BYTES // 4096) * 4096)
        done += 1
    os.close(fd)
    return done / seconds


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


if __name__ == "__main__":
    main()
