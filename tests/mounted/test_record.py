"""`sharedctl record` on a live pool: its trace, replayed under `proportional`, has the books that the pool has."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from controller.lab.events import Event
from controller.lab.replay import Clocks, Replay
from controller.lab.trace_file import StoredTrace, open_trace
from controller.lab.trace_index import survey
from controller.policies.proportional import Proportional
from tests.support.controller import run_sharedctl
from tests.support.mount import MountedPool
from tests.support.tenants import Tenants, wait_until

MIB = 1 << 20


def bill_of(trace: StoredTrace) -> dict[str, int]:
    found = survey(trace, lambda rows: None)
    (meter,) = Replay(trace, found, [Proportional()], Clocks()).run(lambda rows: None).meters
    return {cgroup.path: int(meter.level[number]) for number, cgroup in enumerate(meter.accounts.cgroups)}


def test_a_recorded_trace_replays_to_the_books_of_the_pool(pool: MountedPool, tenants: Tenants, run_dir: Path) -> None:
    a, b, c = (tenants.make(name) for name in "abc")
    path = pool.path / "model"
    a.do(f"fd = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT); result = os.pwrite(fd, bytes({4 * MIB}), 0)")
    c.do(f"fd = os.open({str(path)!r}, os.O_RDWR); result = len(os.pread(fd, {MIB}, 0))")
    trace = run_dir / "trace.parquet"
    command = [sys.executable, "-m", "controller.cli.main", "record", str(trace), "--pool", pool.name]
    recorder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: trace.exists() or recorder.poll() is not None, "it records", 20)
        assert recorder.poll() is None, recorder.communicate()
        refused = run_sharedctl("record", str(run_dir / "other.parquet"), "--pool", pool.name)
        assert (refused.returncode, "already" in refused.stderr) == (2, True)
        # Everything of these that changes nothing in the books is in the trace too.
        for _ in range(20):
            b.do(f"fd = os.open({str(path)!r}, os.O_RDWR); result = len(os.pread(fd, {2 * MIB}, {MIB})); os.close(fd)")
        b.do(f"fd = os.open({str(path)!r}, os.O_RDWR); view = mmap.mmap(fd, {MIB}, offset={3 * MIB})")
        b.do("result = sum(view[page] for page in range(0, len(view), 4096))")
        c.do(f"os.ftruncate(fd, {3 * MIB + MIB // 2}); result = os.pwrite(fd, bytes({MIB}), {3 * MIB})")
        pool.wait_for_scan()
        a.exit()
        wait_until(lambda: all(ref.path != a.path for ref in pool.holdings().tenants), "the pool knows of the exit", 20)
        pool.wait_for_scan()
    finally:
        recorder.send_signal(signal.SIGINT)
        said, complaint = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, complaint
    stored = open_trace(trace)
    assert said == f"{trace}: {stored.rows:,} events\n"

    holdings = pool.holdings()
    paths = {ref.id: ref.path for ref in holdings.tenants}
    live: dict[str, int] = {}
    for held in holdings.classes:
        for user in held.payers:
            live[paths[user]] = live.get(paths[user], 0) + held.bytes // len(held.payers)
    replayed = bill_of(stored)
    assert {path: size for path, size in replayed.items() if size} == live
    (events,) = stored.batches()
    reads = events.value[(events.event == Event.TOUCH) & (events.last_page - events.first_page == 511)]
    assert int(np.sum(reads)) >= 20
    assert pool.get("/v1/tape").status_code == 404

    told = subprocess.run(
        [sys.executable, "-m", "controller.cli.main", "lab", "replay", str(trace), "--policy", "first_touch", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (policy,) = json.loads(told.stdout)["traces"][0]["policies"]
    assert policy["most_dying_groups"] == 1
