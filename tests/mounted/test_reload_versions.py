"""A reload to a newer and to an older package: what outlives a daemon is a schema with a version (`pool/schema.py`).

The packages are copies of this one with other numbers, and with what an older one does not know taken out of them. One
of them is installed, by a link that is changed while the pool serves.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sharedfs.common import paths
from tests.support.mount import MountedPool, mounted_pool, sharedfs, unmount_whatever_happened
from tests.support.service_manager import Manager
from tests.support.tenants import Tenant, Tenants, wait_until

PATIENCE = 60
PAGE = 4096


@dataclass
class Package:
    """A copy of this package: what it writes, reads and leaves, and which words of it are others."""

    name: str
    version: int
    reads: tuple[int, ...]
    leaves: tuple[int, ...]
    edits: list[tuple[str, str, str]] = field(default_factory=list)

    def make(self, directory: Path) -> Path:
        copy = directory / self.name / "sharedfs"
        shutil.copytree(Path(paths.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
        numbers = [("VERSION", "2", self.version), ("READS", "(1, 2)", self.reads), ("LEAVES", "(1, 2)", self.leaves)]
        edits = [("pool/schema.py", f"\n{name} = {was}\n", f"\n{name} = {now}\n") for name, was, now in numbers]
        for file, was, now in [*edits, *self.edits]:
            text = (copy / file).read_text()
            assert text.count(was) == 1, f"{file} has {was!r} {text.count(was)} times"
            (copy / file).write_text(text.replace(was, now))
        return copy


THIS = Package("this", 2, (1, 2), (1, 2))
NEWER = Package("newer", 3, (2, 3), (2, 3))
STRANGE = Package("strange", 3, (3,), (3,))
FIRST = Package(
    "first",
    1,
    (1,),
    (1,),
    [
        ("supervisor/prefork.py", "schema.warm()", 'b"warm"'),
        ("supervisor/prefork.py", 'schema.check(kept["state"])', "pass"),
        ("daemon/service.py", 'schema.take_over(kept["state"])', "pass"),
        ("daemon/service.py", 'add_state_version(app, self._kept["state"])', "pass"),
        ("daemon/service.py", "schema.is_hand_over(message)", 'message == b"hand over"'),
        ("mount/mounting.py", "    _check_state_version(record, before)\n", ""),
        (
            "ledger/class_table.py",
            "        match record:\n",
            '        if record[0] in ("part", "behind", "settle", "free"):\n            return False\n'
            "        match record:\n",
        ),
    ],
)
"""As a package of version 1 is: it knows nothing of versions, and its daemons die of newer records in a log."""


class Host:
    """A pool, and the package that is installed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = directory / "site"
        self.site.mkdir(parents=True)
        self.pool: MountedPool

    def install(self, package: Package) -> None:
        made = self.directory / package.name / "sharedfs"
        if not made.exists():
            package.make(self.directory)
        (self.site / "new").symlink_to(made)
        (self.site / "new").rename(self.site / "sharedfs")

    def reload(self) -> subprocess.CompletedProcess[str]:
        """With the installed package's own command."""
        command = [sys.executable, "-m", "sharedfs", "reload", str(self.pool.path)]
        return subprocess.run(command, cwd=self.site, capture_output=True, text=True, timeout=300, check=False)

    def state_version(self) -> int:
        found = json.loads((self.pool.kept("version") / "version").read_text())
        return int(found["version"])

    def log(self) -> str:
        return paths.daemon_log(self.pool.name).read_text()


@pytest.fixture
def host(run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(run_dir / "packages")
    made.install(THIS)
    monkeypatch.setenv("PYTHONPATH", str(made.site))
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as made.pool:
        yield made
        made.pool.check_conservation()


class Work:
    """Two tenants, one of which has a file open, and what the books say of them."""

    def __init__(self, pool: MountedPool, tenants: Tenants) -> None:
        self.pool = pool
        self.writer, self.reader, gone = (tenants.make(name) for name in ("writer", "reader", "gone"))
        self.writer.do(f"import os; fd = os.open({str(pool.path / 'f')!r}, os.O_RDWR | os.O_CREAT, 0o666)")
        self.writer.do(f"os.pwrite(fd, b'x' * {4 * PAGE}, 0)")
        for tenant, pages in ((self.reader, 2), (gone, 3)):
            tenant.do(f"import os; fd = os.open({str(pool.path / 'f')!r}, os.O_RDONLY)")
            tenant.do(f"os.pread(fd, {pages * PAGE}, 0)")
            tenant.do("os.close(fd)")
        gone.exit()
        wait_until(lambda: not pool.knows(gone), "the pool knows of the exit", PATIENCE)
        self.bills = self.billed()

    def billed(self) -> list[int]:
        return [self.pool.used(tenant) for tenant in (self.writer, self.reader)]

    def goes_on(self) -> None:
        """The open file, its content and the bills are there, and the books take what is new."""
        assert self.billed() == self.bills == [4 * PAGE, 2 * PAGE]
        assert self.writer.do(f"result = os.pread(fd, {5 * PAGE}, 0) == b'x' * {4 * PAGE}")
        self.grows(self.writer)

    def grows(self, tenant: Tenant) -> None:
        before = self.pool.used(tenant)
        tenant.do(f"other = os.open({str(self.pool.path / 'g')!r}, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)")
        tenant.do(f"os.pwrite(other, b'y' * {PAGE}, 0)")
        assert self.pool.used(tenant) == before + PAGE
        tenant.do(f"os.close(other); os.unlink({str(self.pool.path / 'g')!r})")
        wait_until(lambda: self.pool.used(tenant) == before, "the file is gone", PATIENCE)


@pytest.fixture
def work(host: Host, tenants: Tenants) -> Work:
    return Work(host.pool, tenants)


@pytest.mark.parametrize(("other", "left"), [(NEWER, 3), (FIRST, 1)], ids=["newer", "first"])
def test_a_reload_to_another_version_and_back_keeps_everything(
    host: Host, work: Work, other: Package, left: int
) -> None:
    daemons = {host.pool.status().daemon_pid}
    assert host.state_version() == 2
    for package, version in ((other, left), (THIS, 2)):
        host.install(package)
        done = host.reload()
        assert done.returncode == 0, done.stderr + host.log()
        assert host.state_version() == version
        assert host.pool.get("/v1/state-version").is_success == (package is not FIRST)
        work.goes_on()
        daemons.add(host.pool.status().daemon_pid)
    assert len(daemons) == 3
    assert host.pool.status().restarts == 2, "no daemon has died"


def test_a_version_that_cannot_be_read_is_refused_and_the_daemon_goes_on(host: Host, work: Work) -> None:
    before = host.pool.status()
    host.install(STRANGE)
    refused = host.reload()
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"the installed package reads 3: install another one; daemon {before.daemon_pid} goes on" in refused.stderr
    os.kill(before.keeper_pid, signal.SIGHUP)  # without asking first
    wait_until(lambda: "the old one goes on" in host.log(), "the keeper refuses", PATIENCE)
    assert "sharedfs: the state of this pool is of version 2" in host.log()
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
    place = run_dir / "mnt"
    place.mkdir()
    manager = Manager(MountedPool(place, unique_name), "--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with ExitStack() as resources:
        resources.callback(unmount_whatever_happened, place)
        resources.callback(manager.stop)
        resources.callback(lambda: sharedfs("umount", str(place), check=False))
        manager.start()
        (place / "f").write_bytes(b"x" * PAGE)
        os.kill(manager.process_id, signal.SIGKILL)
        assert manager.wait() == -signal.SIGKILL
        host.install(STRANGE)
        assert manager.start_in_vain() == 1
        assert "sharedfs: the state of this pool is of version 2" in capfd.readouterr().err
        host.install(THIS)
        manager.start()
        assert (place / "f").read_bytes() == b"x" * PAGE


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
    assert (after.restarts, after.reloads, host.state_version()) == (1, 0, 2)
    assert "the old one goes on; reload again" in host.log()
    work.goes_on()
    assert host.reload().returncode == 0
    assert host.state_version() == 1
    work.goes_on()
