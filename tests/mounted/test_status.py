"""`sharedfs status` takes slow for slow: a pool that does not answer is listed, and holds up no other."""

import json
import os
import signal
import time
from pathlib import Path

from sharedfs.mount import mounting
from sharedfs.pool import registry
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import PATIENCE


def test_a_pool_that_does_not_answer_is_listed_as_such(pool: MountedPool, run_dir: Path, unique_name: str) -> None:
    other = f"{unique_name}-other"
    with mounted_pool(run_dir / "other", other, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools"):
        assert set(json.loads(sharedfs("status", "--json").stdout)) == {"pools"}
        record = registry.read_record(pool.name)
        assert record is not None
        daemon = pool.status().daemon_pid
        os.kill(daemon, signal.SIGSTOP)
        try:
            began = time.monotonic()
            table = sharedfs("status").stdout
            assert time.monotonic() - began < 8 * PATIENCE  # it was 11
            told = json.loads(sharedfs("status", "--json").stdout)
            assert mounting.ask_status(pool.name, 0.1) is None
        finally:
            os.kill(daemon, signal.SIGCONT)
    (line,) = (line for line in table.splitlines() if line.startswith(f"{pool.name}:") and "no answer" in line)
    assert str(pool.path) in line
    assert f"keeper pid {record.keeper_pid}" in line
    assert any(line.startswith(f"{other} ") for line in table.splitlines())
    assert [status["name"] for status in told["pools"]] == [other]
    assert told["not_answering"] == [json.loads(record.model_dump_json())]
