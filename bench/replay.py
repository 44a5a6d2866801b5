#!/usr/bin/env python3
"""How fast the lab replays a trace under all policies, and in how much memory.

Writes the trace to a temporary directory first, as `sharedctl lab generate` would, and replays it from there in a
process of its own, whose peak memory is measured. Also, where polars is installed, the innermost step of the replay
(which of a million events change anything, and how many groups that concerns) in numpy and in polars.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from controller.lab.cli import replay_trace
from controller.lab.replay import Clocks
from controller.lab.scenarios.catalogue import scenario_named
from controller.lab.trace_file import TraceWriter, open_trace

_MILLION = 1_000_000


@click.command(help=__doc__, epilog="Example: bench/replay.py --events 10000000 --policy first_touch")
@click.option("--events", default=100 * _MILLION, show_default=True, type=click.IntRange(1), help="About so many.")
@click.option("--scenario", default="database", show_default=True, help="See `sharedctl lab generate --help`.")
@click.option("--policy", "policies", multiple=True, default=["all"], show_default=True, help="May be given again.")
@click.option("--replay", "trace", type=click.Path(path_type=Path), hidden=True)  # in the process that is measured
def main(events: int, scenario: str, policies: tuple[str, ...], trace: Path | None) -> None:
    if trace is not None:
        print(json.dumps(_measure(trace, policies)))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.parquet"
        started = time.perf_counter()
        with TraceWriter(path) as writer:
            for batch in scenario_named(scenario).generate(1, events):
                writer.write(batch)
        took = time.perf_counter() - started
        print(f"{scenario}: {writer.rows:,} events written in {took:.1f} s,", end=" ")
        print(f"{path.stat().st_size / writer.rows:.1f} bytes an event", flush=True)
        chosen = [word for name in policies for word in ("--policy", name)]
        command = [sys.executable, __file__, "--replay", str(path), *chosen]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"replayed under {told['policies']} policies in {told['seconds']:.1f} s"
            f" ({told['cpu_seconds']:.1f} s of CPU):"
            f" {writer.rows / told['seconds'] / _MILLION:.2f} million events a second;"
            f" {told['groups']:,} page groups, {told['tenants']:,} tenants, peak memory {told['peak_mib']:,} MiB"
        )
    _compare_steps()


def _measure(path: Path, policies: tuple[str, ...]) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    run = replay_trace(open_trace(path), policies, None, Clocks())
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "policies": len(run.policies),
        "groups": run.groups,
        "tenants": run.tenants,
        # Not ru_maxrss: that counts what the process was before exec, too.
        "peak_mib": next(int(line.split()[1]) for line in _status() if line.startswith("VmHWM")) >> 10,
    }


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def _compare_steps() -> None:
    try:
        import polars as pl  # noqa: PLC0415 - may be missing
    except ImportError:
        print("polars is not installed: nothing to compare numpy with")
        return
    random = np.random.default_rng(1)
    groups = random.integers(0, 30_000, _MILLION)
    rows = random.integers(0, 200, _MILLION)
    states = random.integers(0, 500, 30_000).astype(np.int32)
    table = np.broadcast_to(np.arange(500, dtype=np.int32), (200, 500)).copy()
    table[:, ::100] = 7  # one state in a hundred changes
    flat = table.ravel()

    def in_numpy() -> int:
        current = states[groups]
        changes = np.flatnonzero(flat.take(rows * 500 + current) != current)
        return len(np.unique(groups[changes], return_index=True)[1])

    frame = pl.DataFrame({"group": groups, "row": rows})
    states_of = pl.DataFrame({"group": np.arange(30_000), "state": states.astype(np.int64)})
    targets = pl.DataFrame({"key": np.arange(len(flat)), "target": flat.astype(np.int64)})

    def in_polars() -> int:
        joined = frame.with_row_index("at").join(states_of, on="group")
        joined = joined.with_columns((pl.col("row") * 500 + pl.col("state")).alias("key")).join(targets, on="key")
        changes = joined.filter(pl.col("target") != pl.col("state"))
        return int(changes.group_by("group").agg(pl.col("at").min()).height)

    assert in_numpy() == in_polars()
    print(f"a million events: numpy {_best(in_numpy):.1f} ms, polars {_best(in_polars):.1f} ms")


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
