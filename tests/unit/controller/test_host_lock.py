"""A host has one controller: two would take each other's lowered limits for the manager's, and lower them further."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from controller.service import guard
from controller.service.guard import locked
from controller.service.host_lock import host_lock
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import find_memory_hierarchy
from tests.support.tenants import PATIENCE, wait_until

ENDS = 20 * PATIENCE


def environment(directory: Path) -> dict[str, str]:
    directory.mkdir()
    return {
        "PATH": os.environ["PATH"],
        "SHAREDFS_RUN_DIR": str(directory / "run"),
        "SHAREDFS_STATE_DIR": str(directory / "state"),
    }


def start(places: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller.cli.main", "run", *options]
    return subprocess.Popen(command, env=places, stderr=subprocess.PIPE, text=True)


def serves(places: Mapping[str, str]) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(f"{places['SHAREDFS_RUN_DIR']}/controller.sock") == 0


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Those of a controller that runs."""
    made = environment(tmp_path / "first")
    process = start(made)
    try:
        wait_until(lambda: serves(made), "the controller serves", 60)
        yield made
    finally:
        process.terminate()
        process.communicate(timeout=ENDS)


@pytest.mark.alone  # no other controller can run meanwhile
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write limits")
def test_a_second_controller_is_refused_from_whatever_directories(places: dict[str, str], tmp_path: Path) -> None:
    second = start(environment(tmp_path / "second"))
    _, said = second.communicate(timeout=ENDS)
    assert second.returncode == 2, said
    assert "a controller already runs on this host" in said
    assert said.count("\n") == 1
    third = environment(tmp_path / "third")  # it writes no limits
    looks_on = start(third, "--dry-run")
    try:
        wait_until(lambda: serves(third), "a dry run is not refused", 60)
    finally:
        looks_on.terminate()
        looks_on.communicate(timeout=ENDS)


def test_nobody_but_root_can_take_the_lock_away() -> None:
    """A lock takes an open file, and a shared one no more than the right to read it."""
    found = paths.host_lock(find_memory_hierarchy().mount).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o200)


def test_the_guard_of_a_killed_controller_keeps_others_waiting(tmp_path: Path) -> None:
    file = tmp_path / "host.lock"
    with host_lock(file), pytest.raises(CallerMistake, match="already runs on this host"), host_lock(file):
        pass
    command = [sys.executable, "-I", "-S", guard.__file__, str(tmp_path / "guard.lock"), str(file), "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        descriptor = os.open(file, os.O_WRONLY)
        assert not locked(descriptor, 1, fcntl.F_WRLCK)
        process.stdin.close()  # its controller has died
        with host_lock(file):
            assert process.wait(ENDS) == 0
        os.close(descriptor)
