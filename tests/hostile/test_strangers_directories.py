"""Run and state directories of a stranger: nothing in them is believed, locked, followed, killed by or removed."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from controller.service import guard, guarding
from controller.service.run import only_controller
from sharedfs.api.unix_listener import listen_at
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.trusted_paths import check_trusted, open_trusted
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.pool import registry
from tests.support.programs import finish

STRANGER = 65534
NAME = "forged"


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with sharedfs."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture(autouse=True)
def places(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory and a state directory, which are there, and a host lock of the test's own."""
    run_dir.chmod(0o755)
    for variable, name in (("SHAREDFS_RUN_DIR", "run"), ("SHAREDFS_STATE_DIR", "state")):
        (run_dir / name).mkdir(mode=0o755)
        monkeypatch.setenv(variable, str(run_dir / name))
    monkeypatch.setenv("SHAREDFS_HOST_LOCK", str(run_dir / "host.lock"))
    monkeypatch.setattr(guarding, "_END_SECONDS", 0.2)
    return run_dir


@contextmanager
def locked_with(process_id: int) -> Iterator[None]:
    """The guard's lock is held, and says so of a process."""
    descriptor = os.open(paths.guard_lock(), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.pwrite(descriptor, b"%-20d" % process_id, 0)
        yield
    finally:
        os.close(descriptor)


def give_away(directory: Path) -> None:
    os.chown(directory, STRANGER, STRANGER)


def open_to_others(directory: Path) -> None:
    """Sticky: others cannot take away what is root's, but make the names that are not there yet."""
    directory.chmod(0o1777)


# -- the controller --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "which"),
    [
        (give_away, paths.run_directory),
        (give_away, paths.state_directory),
        (give_away, lambda: paths.state_directory().parent),
        (open_to_others, paths.run_directory),
        (open_to_others, paths.state_directory),
    ],
)
def test_no_controller_runs_where_others_can_change_its_files(
    places: Path, victim: subprocess.Popen[bytes], spoil: Callable[[Path], None], which: Callable[[], Path]
) -> None:
    """Not even to look who has a lock there: its process would be killed."""
    with locked_with(victim.pid):
        spoil(which())
        before, refused = sorted(places.rglob("*")), pytest.raises(CallerMistake, match="changed by others than root")
        with refused, only_controller(find_memory_hierarchy()):
            pass
        assert sorted(places.rglob("*")) == before
    assert victim.poll() is None


def test_nothing_is_made_below_a_strangers_directory(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(paths.state_directory())
    monkeypatch.setenv("SHAREDFS_STATE_DIR", str(places / "state" / "below" / "it"))
    with pytest.raises(CallerMistake, match="changed by others than root"), only_controller(find_memory_hierarchy()):
        pass
    assert list((places / "state").iterdir()) == []


def test_only_a_guard_is_killed_for_its_lock(victim: subprocess.Popen[bytes]) -> None:
    with locked_with(victim.pid), pytest.raises(HostFault, match="no guard of limits"):
        guarding.end_earlier_guard(paths.guard_lock())
    assert victim.poll() is None
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    for process_id in (gone.pid, 1 << 80, -1):
        with locked_with(process_id), pytest.raises(HostFault, match="no guard of limits"):
            guarding.end_earlier_guard(paths.guard_lock())


def test_the_control_a_guard_that_is_stopped_is_killed() -> None:
    """Its command line is that of a guard; another process has the lock, so that does not help."""
    source = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-I", "-c", source, guard.__file__, str(paths.guard_lock())])
    try:
        with locked_with(process.pid), pytest.raises(HostFault):
            guarding.end_earlier_guard(paths.guard_lock())
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("name", ["run/controller.lock", "state/journal.lock", "state/guard.lock"])
def test_no_link_is_followed_to_a_lock(places: Path, name: str) -> None:
    with only_controller(find_memory_hierarchy()):
        pass  # the control: it starts without one
    precious = places / "precious"
    (places / name).unlink(missing_ok=True)
    (places / name).symlink_to(precious)
    with pytest.raises(CallerMistake, match="is a link"), only_controller(find_memory_hierarchy()):
        pass
    assert not precious.exists()


@pytest.mark.parametrize("name", ["controller.db", "controller.db-wal", "history.db"])
def test_no_link_is_followed_to_a_database(places: Path, name: str) -> None:
    (places / "state" / name).symlink_to(places / "precious")
    for words in (["run"], ["run", "--check"], ["restore"]):
        code, output = finish(Path(sys.executable).with_name("sharedctl"), *words, seconds=20)
        assert (code, output.count("\n")) == (2, 1), output
        assert f"{name} is a link" in output
    assert not (places / "precious").exists()


# -- records of pools ------------------------------------------------------------------------------------------------


def forge_record(mountpoint: Path, process_id: int, cgroup: str) -> Path:
    directory = paths.pool_directory(NAME)
    directory.mkdir(parents=True)
    record = {
        "name": NAME,
        "mountpoint": str(mountpoint),
        "keeper_pid": process_id,
        "pool_cgroup": cgroup,
        "removable_cgroups": [cgroup],
        "device": None,
    }
    (directory / "pool.json").write_text(json.dumps(record))
    (directory / "lock").touch()
    return directory


@pytest.mark.parametrize("given_away", [paths.run_directory, paths.pools_directory, lambda: paths.pool_directory(NAME)])
def test_no_forged_record_is_believed(
    places: Path, unique_name: str, victim: subprocess.Popen[bytes], given_away: Callable[[], Path]
) -> None:
    """Its cgroups would be removed, its process ended, and files beside it be deleted."""
    mountpoint, cgroup = places / "mnt", find_memory_hierarchy().directory(f"/{unique_name}")
    mountpoint.mkdir()
    cgroup.mkdir()
    try:
        directory = forge_record(mountpoint, victim.pid, f"/{unique_name}")
        record = registry.read_record(NAME)
        assert record is not None, "the control: where only root can write it is one"
        (directory / "daemon.log").write_text("mine")
        give_away(given_away())
        commands = (
            ["mount", str(mountpoint), "--name", NAME, "--size", "32M"],
            ["umount", str(mountpoint)],
            ["umount", "--force", str(mountpoint)],
            ["status"],
        )
        for words in commands:
            code, output = finish(Path(sys.executable).with_name("sharedfs"), *words, seconds=30)
            assert (code, output.count("\n")) == (2, 1), output
            assert "changed by others than root" in output
        assert sorted(found.name for found in directory.iterdir()) == ["daemon.log", "lock", "pool.json"]
        assert cgroup.is_dir()
        assert victim.poll() is None
        os.chown(given_away(), 0, 0)
        registry.clean_up_dead(record)
        assert not cgroup.exists(), "the control: that is what a record can do"
    finally:
        if cgroup.exists():
            cgroup.rmdir()


# -- sockets and paths -----------------------------------------------------------------------------------------------


def test_only_a_socket_is_replaced_by_a_socket(places: Path) -> None:
    place = places / "it.sock"
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to(places / "elsewhere")):
        make(place)
        with pytest.raises(CallerMistake, match="no socket and stays as it is"):
            listen_at(place)
        assert place.is_symlink() or place.exists()
        place.rmdir() if place.is_dir() else place.unlink()
    listen_at(place).close()
    with closing(listen_at(place)), closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(place))  # the control: a socket that was left there is replaced


def test_each_step_of_a_path_is_checked(places: Path) -> None:
    (places / "a" / "b").mkdir(parents=True)
    (places / "link").symlink_to("a")
    (places / "loop").symlink_to("loop")
    for path in ("a/b", "link/b", "link/../a/./b", f"{places}/link/b"):
        descriptor = open_trusted(places / path, "advice")
        assert os.path.samestat(os.fstat(descriptor), (places / "a" / "b").stat())
        os.close(descriptor)
    with pytest.raises(CallerMistake, match=r"symbolic links.*advice"):
        open_trusted(places / "loop", "advice")
    descriptors = len(os.listdir("/proc/self/fd"))
    give_away(places / "a")
    for path in ("a", "a/b", "link", "link/b", "a/b/../../run"):
        with pytest.raises(CallerMistake, match="a can be changed by others than root: advice"):
            open_trusted(places / path, "advice")
    assert check_trusted(places / "run", "advice")
    assert not check_trusted(places / "nothing", "advice")
    assert len(os.listdir("/proc/self/fd")) == descriptors
