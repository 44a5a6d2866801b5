"""A reload to a newer and to an older package: what outlives a daemon is a schema with a version (`pool/schema.py`).

The packages are copies of this one; see `tests/support/packages.py`.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import CgroupVersion
from sharedfs.pool.schema import VERSION
from tests.support.mount import mounted_pool
from tests.support.packages import FIRST, PAGE, PATIENCE, SECOND, THIS, Copy, Host, Work, managed
from tests.support.tenants import Tenants, wait_until

NEXT = VERSION + 1
NEWER = Copy("newer", NEXT, (VERSION, NEXT), (VERSION, NEXT))
STRANGE = Copy("strange", NEXT, (NEXT,), (NEXT,))


@pytest.fixture
def host(run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(run_dir / "packages")
    made.install(THIS)
    monkeypatch.setenv("PYTHONPATH", str(made.site))
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as made.pool:
        yield made
        made.pool.check_conservation()


@pytest.fixture
def work(host: Host, tenants: Tenants) -> Work:
    return Work(host.pool, tenants)


@pytest.mark.parametrize(("other", "left"), [(NEWER, NEXT), (SECOND, 2), (FIRST, 1)], ids=["newer", "second", "first"])
def test_a_reload_to_another_version_and_back_keeps_everything(host: Host, work: Work, other: Copy, left: int) -> None:
    daemons = {host.pool.status().daemon_pid}
    assert host.state_version() == VERSION
    for package, version in ((other, left), (THIS, VERSION)):
        host.install(package)
        done = host.reload()
        assert done.returncode == 0, done.stderr + host.log()
        assert host.state_version() == version
        assert host.pool.get("/v1/state-version").is_success == (package is not FIRST)
        work.goes_on()
        daemons.add(host.pool.status().daemon_pid)
    assert len(daemons) == 3
    assert host.pool.status().restarts == 2, "no daemon has died"


@pytest.mark.parametrize("other", [SECOND, FIRST], ids=["second", "first"])
def test_a_package_that_knows_no_heirs_finds_pages_that_are_nobodys(host: Host, tenants: Tenants, other: Copy) -> None:
    above = tenants.make("above", 64 << 20)
    if above.hierarchy.version is CgroupVersion.V2:
        (above.directory / "cgroup.subtree_control").write_text("+memory")
    for number in range(2):
        child = tenants.make(f"above/{number}")
        child.do(f"with open({str(host.pool.path / f'f{number}')!r}, 'wb') as file: file.write(b'x' * {PAGE})")
        child.exit()
    wait_until(lambda: host.pool.used(above) == 2 * PAGE, "it has what they left", PATIENCE)
    for package in (other, THIS):
        host.install(package)
        done = host.reload()
        assert done.returncode == 0, done.stderr + host.log()
        assert host.pool.used(above) == 0
        assert host.pool.holdings().resident_bytes == 2 * PAGE
    assert host.pool.status().restarts == 2, "no daemon has died"


def test_a_version_that_cannot_be_read_is_refused_and_the_daemon_goes_on(host: Host, work: Work) -> None:
    before = host.pool.status()
    host.install(STRANGE)
    refused = host.reload()
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert (
        f"the installed package reads {NEXT}: install another one; daemon {before.daemon_pid} goes on" in refused.stderr
    )
    os.kill(before.keeper_pid, signal.SIGHUP)  # without asking first
    wait_until(lambda: "the old one goes on" in host.log(), "the keeper refuses", PATIENCE)
    assert f"sharedfs: the state of this pool is of version {VERSION}" in host.log()
    assert "Traceback" not in host.log()
    after = host.pool.status()
    assert (after.daemon_pid, after.restarts, after.reloads) == (before.daemon_pid, 0, 0)
    work.goes_on()
    host.install(NEWER)
    assert host.reload().returncode == 0
    work.goes_on()


def test_a_keeper_that_cannot_read_the_state_touches_nothing(
    run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A service manager starts it anew with what it has kept, after another package was installed."""
    host = Host(run_dir / "packages")
    host.install(THIS)
    monkeypatch.setenv("PYTHONPATH", str(host.site))
    monkeypatch.chdir(host.site)  # `python -m` looks there first
    with managed(host, run_dir / "mnt", unique_name) as manager:
        manager.start()
        (host.pool.path / "f").write_bytes(b"x" * PAGE)
        os.kill(manager.process_id, signal.SIGKILL)
        assert manager.wait() == -signal.SIGKILL
        host.install(STRANGE)
        assert manager.start_in_vain() == 1
        assert f"sharedfs: the state of this pool is of version {VERSION}" in capfd.readouterr().err
        host.install(THIS)
        manager.start()
        assert (host.pool.path / "f").read_bytes() == b"x" * PAGE


def test_what_a_killed_daemon_leaves_is_read_by_its_own_version(host: Host, work: Work) -> None:
    """It dies when it is to leave what the older version reads. That one's daemons would die of it, one by one."""
    before = host.pool.status()
    host.install(FIRST)
    os.kill(before.daemon_pid, signal.SIGSTOP)
    try:
        os.kill(before.keeper_pid, signal.SIGHUP)
        wait_until(lambda: "is to leave the state in version 1" in host.log(), "the older version is ready", PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.kill(before.daemon_pid, signal.SIGKILL)
    wait_until(lambda: host.pool.status_or_none() is not None, "another daemon answers", PATIENCE)
    after = host.pool.status()
    assert (after.restarts, after.reloads, host.state_version()) == (1, 0, VERSION)
    assert "the old one goes on; reload again" in host.log()
    work.goes_on()
    assert host.reload().returncode == 0
    assert host.state_version() == 1
    work.goes_on()
