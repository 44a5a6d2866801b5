#!/usr/bin/env python3
"""What recording costs a pool: random 4 KiB reads of one file, while nobody records and while somebody does.

bench/record.py [--rounds N] [--seconds S]
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_FILE_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:
        os.environ["SHAREDFS_RUN_DIR"] = f"{directory}/run"
        place = Path(directory) / "mnt"
        place.mkdir()
        _run("sharedfs", "mount", str(place), "--size", "128M", "--name", f"bench-{os.getpid()}")
        try:
            _compare(place / "file", Path(directory) / "trace.parquet", arguments.rounds, arguments.seconds)
        finally:
            _run("sharedfs", "umount", str(place))


def _compare(file: Path, trace: Path, rounds: int, seconds: float) -> None:
    file.write_bytes(bytes(_FILE_BYTES))
    without, beside = [], []
    sizes = []
    for _ in range(rounds):
        without.append(_reads(file, seconds))
        recorder = subprocess.Popen(
            [sys.executable, "-m", "controller.cli", "record", str(trace)], stdout=subprocess.PIPE
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
