"""`deploy/quickstart` for real: what it shows is true, and what it makes is gone again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.demo.containers import installed_runtime
from deploy.demo.host import zombies_stay
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at, mounts
from tests.deploy.conftest import REPOSITORY, Script
from tests.support.tenants import wait_until

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]
KEPT = Path("/mnt/sharedfs")
MIB = 1 << 20


def processes_of(places: dict[str, str], *, but_for: tuple[str, ...] = ()) -> set[int]:
    """Processes started with our run directory, but for those whose command line has one of `but_for`."""
    found = set()
    for process in psutil.process_iter():
        try:
            if set(but_for).intersection(process.cmdline()):
                continue
            if process.environ().get("SHAREDFS_RUN_DIR") == places["SHAREDFS_RUN_DIR"]:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def traces() -> set[str]:
    """What demonstrations leave on a host when they are killed."""
    hierarchy = find_memory_hierarchy()
    return {
        *(mount.mountpoint for mount in mounts() if "sharedfs-demo" in mount.source + mount.mountpoint),
        *map(str, hierarchy.mount.glob("sharedfs-demo-*")),
        *map(str, hierarchy.mount.glob("sharedfs/demo-*")),
        *map(str, Path("/tmp").glob("sharedfs-demo-*")),
    }


@pytest.fixture
def assert_nothing_is_left(places: dict[str, str]) -> Callable[[], None]:
    before = traces()  # another one's, which was killed, is not ours to judge

    def check() -> None:
        assert processes_of(places) == set()
        assert traces() <= before
        assert not Path(places["SHAREDFS_RUN_DIR"]).exists()
        assert not Path(places["SHAREDFS_STATE_DIR"]).exists()

    return check


def assert_story_is_true(facts: dict[str, Any]) -> None:
    file_bytes, pool, tmpfs = facts["file_bytes"], facts["pool"], facts["tmpfs"]
    for name in ("shared", "alone", "deserted"):
        bills = pool[name]
        shares_bytes = sum(tenant["share_bytes"] for tenant in bills["tenants"])
        assert shares_bytes + bills["unclaimed_bytes"] == bills["pool_resident_bytes"]
    before, after = pool["survivor"]
    assert pool["leaver"]["share_bytes"] == before["share_bytes"] == file_bytes // 2
    assert after["share_bytes"] == file_bytes
    assert before["limit_bytes"] - after["limit_bytes"] == after["share_bytes"] - before["share_bytes"]
    assert after["limit_bytes"] == after["budget_bytes"] - after["share_bytes"]
    assert set(pool["shmem_bytes"].values()) == {0}
    assert list(tmpfs["shmem_bytes"].values()) == [file_bytes, 0]
    assert tmpfs["survivor_shmem_bytes"] == 0
    # On v1 the counter is the whole host's, and the tests before this one leave it trembling.
    crowds = facts["crowds"]
    assert crowds["pool"]["zombies"] <= 2
    if zombies_stay(facts["kernel"]):
        assert crowds["tmpfs"]["zombies"] >= crowds["tmpfs"]["tenants"] // 2


def test_it_runs_twice_and_puts_everything_back(
    script: Script, assert_nothing_is_left: Callable[[], None], tmp_path: Path
) -> None:
    for run in ("first", "second"):
        done = script("quickstart", "--json", str(tmp_path / run))
        assert done.returncode == 0, done.stdout + done.stderr
        facts = json.loads((tmp_path / run).read_text())
        assert_story_is_true(facts)
        assert "Side by side" in done.stdout
        assert_nothing_is_left()


def test_with_containers(script: Script, assert_nothing_is_left: Callable[[], None], tmp_path: Path) -> None:
    try:
        runtime = installed_runtime()
    except CallerMistake as mistake:
        pytest.skip(str(mistake))
    done = script("quickstart", "--containers", "--json", str(tmp_path / "facts"))
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "facts").read_text())
    assert facts["runtime"] == runtime
    assert f"containers of {runtime}" in done.stdout
    assert_story_is_true(facts)
    assert_nothing_is_left()


def test_without_a_container_runtime(places: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo", "--containers"],
        env=places | {"PATH": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "quickstart: no container runtime is installed: install one of runc, crun, podman, then run it again\n"
    )


def test_keep_twice_then_without_then_uninstall(script: Script, places: dict[str, str], tmp_path: Path) -> None:
    if KEPT.exists():
        pytest.skip(f"{KEPT} is in use on this host")
    try:
        kept = set()
        for arguments in (["--keep"], ["--keep"], []):
            done = script("quickstart", *arguments, "--json", str(tmp_path / "facts"))
            assert done.returncode == 0, done.stdout + done.stderr
            assert_story_is_true(json.loads((tmp_path / "facts").read_text()))
            assert mount_at(str(KEPT)) is not None
            kept.add(frozenset(processes_of(places, but_for=("sharedfs.spare", "sharedfs.linux.looker"))))
        (processes,) = kept
        assert len(processes) == 3, "a pool's keeper, a controller and its guard, the same for all runs"
    finally:
        done = script("uninstall")
    assert done.returncode == 0, done.stderr
    assert mount_at(str(KEPT)) is None
    assert not KEPT.exists()
    assert processes_of(places) == set()
    assert not Path(places["SHAREDFS_RUN_DIR"]).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_puts_everything_back(
    places: dict[str, str], assert_nothing_is_left: Callable[[], None], number: signal.Signals
) -> None:
    with subprocess.Popen(
        [REPOSITORY / "deploy/quickstart"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=places,
        cwd="/",
        start_new_session=True,  # as a terminal does: the signal goes to the whole group
    ) as process:
        tenant = find_memory_hierarchy().directory(f"sharedfs-demo-{process.pid}/pool-a")
        wait_until(tenant.exists, "a tenant is there", 60)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.decode().splitlines()[-1] == "quickstart: interrupted"
    assert_nothing_is_left()
