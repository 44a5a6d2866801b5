"""A pool of the package before the folders, whose modules lay flat in `sharedfs/`: reloaded to this one and back.

`history` is that package, the last one of its kind, as git has it; where git does not have it (a shallow clone, an
archive of the source) its tests are skipped. `recorded` runs everywhere: this package with what crosses from one to the
other put as that one has it: the names of modules that it starts, the words of keeper and spare, the records in the log
of classes, and the names by which its daemon and the child that looks at processes call what they tell each other.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from sharedfs.pool.schema import VERSION
from tests.support.deaths import kill_daemon
from tests.support.mount import mounted_pool
from tests.support.packages import FIRST, PAGE, PATIENCE, THIS, Copy, Host, Package, Work, managed
from tests.support.service_manager import Manager
from tests.support.tenants import Tenants, wait_until

ROOT = Path(__file__).parents[2]


class InHistory:
    name = "history"
    commit = "f5feb36a32e8786eefc93ecfde84dd62757d729f"

    def is_there(self) -> bool:
        with suppress(FileNotFoundError):
            asked = ["git", "-C", str(ROOT), "cat-file", "-e", f"{self.commit}:sharedfs/keeper.py"]
            return subprocess.run(asked, capture_output=True, check=False).returncode == 0
        return False

    def make(self, directory: Path) -> None:
        directory.mkdir()
        command = ["git", "-C", str(ROOT), "archive", self.commit, "sharedfs"]
        archive = subprocess.run(command, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)


RECORDED = Copy(
    "recorded",
    1,
    (1,),
    (1,),
    [
        *FIRST.edits,
        ("supervisor/children.py", '"-P", "-m", schema.SPARE_MODULE', '"-m", "sharedfs.spare"'),
        ("supervisor/keeper.py", "schema.check_left(descriptors[Held.STATE])", "pass"),
        (
            "supervisor/daemons.py",
            "                child.reads = schema.read_by(rest)\n"
            "                if child is self._next_spare:\n"
            "                    self._replace_daemon(child, child.reads)\n",
            "                if child is self._next_spare:\n"
            "                    self._swap(child)\n"
            '                    self._daemon.tell(b"hand over")\n'
            "                    self._begin_reload_again()\n",
        ),
        ("linux/looker.py", '"-m", "sharedfs.linux.looker", self._function', '"-m", "sharedfs.looker", self._function'),
        (
            "supervisor/prefork.py",
            "    gc.collect()\n",
            "    from sharedfs.looker import take_former_names\n\n    take_former_names()\n    gc.collect()\n",
        ),
    ],
)


@pytest.fixture(params=[InHistory(), RECORDED], ids=lambda package: package.name)
def flat(request: pytest.FixtureRequest) -> Package:
    package: InHistory | Copy = request.param
    if isinstance(package, InHistory) and not package.is_there():
        pytest.skip("git does not have that package here")
    return package


@pytest.fixture
def host(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(run_dir / "packages")
    monkeypatch.setenv("PYTHONPATH", str(made.site))
    monkeypatch.chdir(made.site)  # `python -m` looks there first
    return made


@pytest.fixture
def serve(host: Host, run_dir: Path, unique_name: str) -> Iterator[Callable[[Package], None]]:
    """Mounts the pool with a package. What tenants have open is to be closed before it is unmounted."""
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with ExitStack() as resources:

        def mount(package: Package) -> None:
            host.install(package)
            host.pool = resources.enter_context(mounted_pool(run_dir / "mnt", unique_name, *options))

        yield mount


@pytest.fixture
def manager(host: Host, run_dir: Path, unique_name: str) -> Iterator[Manager]:
    with managed(host, run_dir / "mnt", unique_name) as made:
        yield made


def is_of_this_package(host: Host) -> bool:
    """Which one the daemon is of: an earlier one is not asked for the version of its state."""
    return host.pool.get("/v1/state-version").is_success


def killed_goes_on_as(host: Host, package: Package, work: Work) -> None:
    """The daemon that follows one that was killed is of this package: the keeper starts what took over."""
    kill_daemon(host.pool)
    assert is_of_this_package(host) == (package is THIS)
    work.goes_on()


def reload_to(host: Host, package: Package, work: Work) -> None:
    """Nobody notices, and no daemon dies."""
    host.install(package)
    before = host.pool.status()
    done = host.reload()
    assert done.returncode == 0, done.stderr + host.log()
    assert is_of_this_package(host) == (package is THIS)
    work.goes_on()
    after = host.pool.status()
    assert (after.keeper_pid, after.restarts) == (before.keeper_pid, before.restarts + 1)
    assert after.reloads == (before.reloads or 0) + 1


def test_a_pool_of_the_flat_package_is_reloaded_to_this_one_and_back(
    host: Host, flat: Package, serve: Callable[[Package], None], tenants: Tenants
) -> None:
    serve(flat)
    work = Work(host.pool, tenants)
    assert not is_of_this_package(host)
    assert host.state_version() is None
    reload_to(host, THIS, work)
    killed_goes_on_as(host, THIS, work)
    reload_to(host, flat, work)
    killed_goes_on_as(host, flat, work)
    reload_to(host, THIS, work)
    assert host.state_version() == VERSION
    host.pool.check_conservation()


def test_a_pool_of_this_package_is_reloaded_to_the_flat_one_and_back(
    host: Host, flat: Package, serve: Callable[[Package], None], tenants: Tenants
) -> None:
    serve(THIS)
    work = Work(host.pool, tenants)
    reload_to(host, flat, work)
    assert host.state_version() == 1
    killed_goes_on_as(host, flat, work)
    reload_to(host, THIS, work)
    assert host.state_version() == VERSION
    host.pool.check_conservation()


def test_a_keeper_of_either_package_follows_one_of_the_other(
    host: Host, flat: Package, manager: Manager, tenants: Tenants
) -> None:
    """A service manager has kept the descriptors: `systemctl restart` after another package was installed."""
    host.install(flat)
    manager.start()
    work = Work(host.pool, tenants)
    for package in (THIS, flat, THIS):
        host.install(package)
        os.kill(manager.process_id, signal.SIGTERM)
        assert manager.wait() == 0
        manager.start()
        assert is_of_this_package(host) == (package is THIS)
        work.goes_on()
    host.pool.check_conservation()


def lookers_of(daemon: int) -> set[int]:
    """The child of a flat daemon that looks at processes for it."""
    found = set()
    for child in psutil.Process(daemon).children():
        with suppress(psutil.Error):  # it has ended
            if "sharedfs.looker" in child.cmdline():
                found.add(child.pid)
    return found


def test_a_flat_daemon_sees_mappings_through_a_child_of_this_package(
    host: Host, flat: Package, serve: Callable[[Package], None], tenants: Tenants
) -> None:
    """This one is installed and not reloaded to yet. The child that looks at processes dies: another one is made."""
    serve(flat)
    work = Work(host.pool, tenants)
    daemon = host.pool.status().daemon_pid
    before = wait_until(lambda: lookers_of(daemon), "it looks at processes", PATIENCE)
    host.install(THIS)
    for child in before:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: lookers_of(daemon) - before, "another child looks at processes", PATIENCE)
    work.writer.do(f"import mmap; mapping = mmap.mmap(fd, {2 * PAGE}); result = mapping[0] + mapping[{PAGE}]")
    wait_until(lambda: host.pool.mapped(work.writer) == 2 * PAGE, "the mapping is seen", PATIENCE)
    assert host.pool.status().daemon_pid == daemon, host.log()
    work.goes_on()
