"""The deployment scripts: they parse, say what is wrong in one line, and do no harm where there is nothing to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import REPOSITORY, Script
from tests.support.mount_helper import HELPER, place_of_helper

SCRIPTS = ["deploy/quickstart", "deploy/setup", "deploy/install", "deploy/uninstall", "tests/run", ".ci/run"]
SCRIPTS += [f"tests/guest/{name}" for name in ("setup", "run", "init", "check")]
USER_SCRIPTS = ["quickstart", "setup", "install", "uninstall"]
INSTALLED = [Path("/opt/sharedfs"), Path("/etc/sharedfs"), Path("/etc/systemd/system/sharedfs-controller.service")]
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may install")


@pytest.mark.parametrize("name", [*SCRIPTS, "deploy/lib.sh"])
def test_it_is_good_bash(name: str) -> None:
    script = REPOSITORY / name
    assert name.endswith(".sh") or os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", USER_SCRIPTS)
def test_help(script: Script, name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"deploy/{name}")
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("name", USER_SCRIPTS)
def test_an_unknown_option_is_the_callers_mistake(script: Script, name: str) -> None:
    done = script(name, "--no-such-option")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--no-such-option" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "tests/run --all tests/unit",
        "tests/guest/setup --machine xen",
        "tests/guest/run --machine xen true",
        "tests/guest/run --cpus 2 true",
        "tests/guest/run --machine qemu",
        "tests/guest/run --machine qemu --systemd true",
        "tests/guest/check --machine uml",
    ],
)
def test_the_tests_scripts_tell_a_callers_mistake(script: Script, line: str) -> None:
    name, *arguments = line.split()
    done = script(f"../{name}", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{Path(name).name}: ")
    assert done.stderr.count("\n") == 1


@needs_root
@pytest.mark.parametrize("name", ["quickstart", "install", "uninstall"])
def test_it_takes_root(script: Script, name: str) -> None:
    try:
        done = script(name, user=NOBODY)
    except PermissionError:
        pytest.skip("this working tree cannot be read by others")
    if "Permission denied" in done.stderr:
        pytest.skip("this working tree cannot be read by others")
    assert done.returncode == 2
    assert done.stderr == f"{name}: {done.stderr[len(name) + 2 :].strip()}\n"
    assert "only root" in done.stderr


def test_setup_refuses_an_old_python(script: Script, places: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" != --version ] || { echo Python 3.9.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    places["PYTHON"] = str(old)
    done = script("setup", "--into", str(tmp_path / "venv"))
    assert done.returncode == 2
    assert done.stderr.startswith("setup: Python 3.9.2 is too old")
    assert not (tmp_path / "venv").exists()


@needs_root
def test_uninstall_where_nothing_is_installed(script: Script) -> None:
    if any(path.exists() for path in INSTALLED):
        pytest.skip("sharedfs is installed on this host")
    for _ in range(2):
        done = script("uninstall")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_root
def test_install_twice_and_uninstall(script: Script, tmp_path: Path) -> None:
    """The units run what is installed, as systemd reads them; mount(8) finds the helper."""
    with place_of_helper():
        _install_twice_and_uninstall(script, tmp_path)


def _install_twice_and_uninstall(script: Script, mountpoint: Path) -> None:
    if HELPER.is_symlink() or any(path.exists() for path in INSTALLED):
        pytest.skip("sharedfs is installed on this host")
    try:
        for _ in range(2):
            done = script("install")
            assert done.returncode == 0, done.stderr
        for command in ("sharedfs", "sharedctl"):
            subprocess.run([f"/usr/local/bin/{command}", "--help"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        subprocess.run(["mount", "-f", "-t", "fuse.sharedfs", "name", mountpoint, "-o", "size=1m"], check=True)
        if shutil.which("systemd-analyze"):
            units = sorted(Path("/etc/systemd/system").glob("sharedfs*.service"))
            assert len(units) == 2
            found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
            assert "sharedfs" not in found.stderr, found.stderr
    finally:
        done = script("uninstall")
        shutil.rmtree("/etc/sharedfs", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert not any(path.exists() for path in INSTALLED)
    assert not Path("/usr/local/bin/sharedfs").is_symlink()
    assert not HELPER.is_symlink()


def test_units_parse(tmp_path: Path) -> None:
    """systemd finds no fault in them; the commands they run stand in for those that deploy/install places."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in (REPOSITORY / "deploy/systemd").glob("*.service"):
        text = unit.read_text().replace("/opt/sharedfs/venv/bin/sharedfs", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("/opt/sharedfs/venv/bin/sharedctl", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.glob("*.service"))], capture_output=True, text=True, check=False
    )
    assert "sharedfs" not in found.stderr, found.stderr
    assert found.returncode == 0, found.stderr


def test_a_pools_unit_keeps_the_hosts_mount_namespace() -> None:
    """Each of these options would hide the pool's mount from everybody else (systemd.exec(5))."""
    unit = (REPOSITORY / "deploy/systemd/sharedfs@.service").read_text()
    settings = {line.partition("=")[0] for line in unit.splitlines() if line and line[0] not in "#["}
    own_namespace = (
        "PrivateMounts PrivateTmp PrivateDevices PrivateNetwork PrivateUsers PrivateIPC ProtectSystem ProtectHome"
        " ProtectProc ProcSubset ProtectControlGroups ProtectKernelTunables ProtectKernelModules ProtectKernelLogs"
        " ProtectHostname MountFlags MountAPIVFS RootDirectory RootImage ReadOnlyPaths ReadWritePaths InaccessiblePaths"
        " ExecPaths NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem DynamicUser NetworkNamespacePath"
        " LogNamespace"
    )
    assert settings.isdisjoint(own_namespace.split())
