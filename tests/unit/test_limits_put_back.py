"""The last umount has limits put back that a dead controller left, by the installed `sharedctl` and no other."""

import sys
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.common.errors import HostFault
from sharedfs.mount import unmounting
from tests.support.controller import run_sharedctl


@pytest.fixture
def left_by_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a controller that is dead; and the directory is the current one."""
    monkeypatch.setenv("SHAREDFS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SHAREDFS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("SHAREDFS_HOST_LOCK", str(tmp_path / "host.lock"))
    assert run_sharedctl("restore").returncode == 0
    assert (tmp_path / "state" / paths.CONTROLLER_DATABASE).exists()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_package_of_that_name_in_the_callers_directory_is_not_run(left_by_a_controller: Path) -> None:
    package = left_by_a_controller / "controller"
    package.mkdir()
    was_run = left_by_a_controller / "was-run"
    (package / "__init__.py").write_text(f"open({str(was_run)!r}, 'w').close()")
    unmounting._put_limits_back()
    assert not was_run.exists()
    run_sharedctl("restore")  # with -m
    assert was_run.exists(), "the control"


def test_without_the_command_it_is_said_what_is_to_do(
    left_by_a_controller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(left_by_a_controller / "python3"))
    with pytest.raises(HostFault, match=r"not back: .*/sharedctl: No such file or directory. Run `sharedctl restore`"):
        unmounting._put_limits_back()


def test_without_a_controller_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREDFS_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    unmounting._put_limits_back()
