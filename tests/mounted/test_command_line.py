"""The command line: what bad input gets is exit code 2, one line that says what to do, and nothing half done."""

import importlib
import io
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.common.command_line import run_cli
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at, mounts
from sharedfs.mount import mounting
from sharedfs.mount.cli import cli
from sharedfs.pool import registry
from sharedfs.pool.options import PoolOptions
from tests.support.mount import MountedPool, sharedfs, unmount
from tests.support.posix import as_user, opened
from tests.support.tenants import wait_until

MountCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mount(run_dir: Path, unique_name: str) -> MountCommand:
    """`sharedfs mount` with a name and a cgroup of the test's own; later options win over these."""

    def run(mountpoint: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
        own = ("--name", unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
        return sharedfs("mount", str(mountpoint), *own, *options, check=False)

    return run


@pytest.fixture
def nothing_left(run_dir: Path, unique_name: str) -> Callable[[], None]:
    def check() -> None:
        assert [mount.mountpoint for mount in mounts() if mount.mountpoint.startswith(str(run_dir))] == []
        assert not find_memory_hierarchy().directory(f"{unique_name}-pools").exists()
        assert not paths.pools_directory().exists() or list(paths.pools_directory().iterdir()) == []

    return check


def assert_mistake(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sharedfs: ")
    for text in expected:
        assert text in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--size", "12Q"), "such as 512M"),
        (("--size", "-1"), "such as 512M"),
        (("--size", "1.5G"), "such as 512M"),
        (("--size", ""), "such as 512M"),
        (("--size", "x%"), "such as 512M"),
        (("--size", "0"), "more than 0"),
        (("--size", "900T"), "at most this host's memory"),
        (("--size", "101%"), "at most this host's memory"),
        (("-o", "nr_inodes=99999999999999999999"), "write at most 4294967296"),
        (("-o", "nr_inodes=18446744073709551615"), "write at most 4294967296"),
        (("--cgroup-parent", "a\nb"), "what cannot be printed"),
        (("--cgroup-parent", "/memory.stat"), "is a file of cgroups"),
        (("--cgroup-parent", "/memory.stat/a"), "is a file of cgroups"),
        (("--name", "a/b"), "letters, digits"),
        (("--name", ".."), "letters, digits"),
        (("--name", ""), "letters, digits"),
        (("--name", "n" * 65), "letters, digits"),
        (("--idle", "0"), "--idle"),
        (("--idle", "soon"), "--idle"),
        (("--reserve", "much"), "--reserve"),
        (("--cgroup-parent", "../../tmp"), "--cgroup-parent"),
        (("--colour", "blue"), "--colour"),
        (("second-mountpoint",), "second-mountpoint"),
    ],
)
def test_options_that_are_none(
    mount: MountCommand, nothing_left: Callable[[], None], run_dir: Path, options: tuple[str, ...], expected: str
) -> None:
    (run_dir / "mnt").mkdir()
    assert_mistake(mount(run_dir / "mnt", *options), expected)
    nothing_left()


def test_mountpoints_that_are_none(
    mount: MountCommand, nothing_left: Callable[[], None], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "file").write_bytes(b"")
    (run_dir / "full").mkdir()
    (run_dir / "full" / "f").write_bytes(b"")
    (run_dir / "dangling").symlink_to("missing")
    (run_dir / "loop").symlink_to("loop")
    (run_dir / "cwd").mkdir()
    monkeypatch.chdir(run_dir / "cwd")
    assert_mistake(mount(run_dir / "missing"), "does not exist", f"mkdir -p {run_dir / 'missing'}")
    assert_mistake(mount(run_dir / "file"), "is not a directory")
    assert_mistake(mount(run_dir / "file" / "below"), "Not a directory")
    assert_mistake(mount(run_dir / "full"), "is not empty")
    assert_mistake(mount(run_dir / "dangling"), "does not exist")
    assert_mistake(mount(run_dir / "loop"), str(run_dir / "loop"))
    assert_mistake(mount(run_dir / ("n" * 300)), "name too long")
    assert_mistake(mount(""), "empty")
    assert_mistake(mount("/proc"), "already mounted")
    nothing_left()


@pytest.mark.parametrize(
    "arguments", [(), ("mount",), ("umount",), ("nonsense",), ("status", "--colour"), ("mount", "a", "b")]
)
def test_commands_that_are_none(nothing_left: Callable[[], None], arguments: tuple[str, ...]) -> None:
    assert_mistake(sharedfs(*arguments, check=False), "--help")
    nothing_left()


def test_who_is_not_root_is_told(run_dir: Path, nothing_left: Callable[[], None]) -> None:
    """In a fork: another user need not be able to execute this interpreter, or to read its modules."""
    for module in ("concurrent.futures.thread", "sharedfs.mount.status", "sharedfs.mount.unmounting"):
        importlib.import_module(module)
    (run_dir / "mnt").mkdir()
    for arguments in (["mount", "mnt"], ["mount", "mnt", "--foreground"], ["umount", "mnt"], ["status", "--json"]):

        def run(arguments: list[str] = arguments) -> subprocess.CompletedProcess[str]:
            stdout, stderr = io.StringIO(), io.StringIO()
            with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as end:
                run_cli(cli, "sharedfs", arguments)
            return subprocess.CompletedProcess(arguments, end.value.code, stdout.getvalue(), stderr.getvalue())

        assert_mistake(as_user(run), "root")
    nothing_left()


@pytest.mark.parametrize("arguments", [(), ("mount",), ("umount",), ("status",)])
def test_every_command_explains_itself_with_an_example(arguments: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        done = sharedfs(*arguments, flag)
        assert done.stderr == ""
        assert "Example: sharedfs" in done.stdout


def test_a_mounted_pool_is_not_mounted_again(
    pool: MountedPool, mount: MountCommand, run_dir: Path, unique_name: str
) -> None:
    (run_dir / "other").mkdir()
    assert_mistake(mount(pool.path, "--name", "other"), "already mounted", f"sharedfs umount {pool.path}")
    assert_mistake(mount(run_dir / "other"), f"a pool named {unique_name}", str(pool.path), "another name")
    assert_mistake(mount(run_dir / "other", "--foreground"), f"a pool named {unique_name}")
    (pool.path / "f").write_bytes(b"unharmed")
    assert [record.name for record in registry.records()] == [unique_name]


def test_of_several_mounts_of_one_name_at_once_one_wins(
    run_dir: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    places_of_four = [run_dir / f"mnt-{number}" for number in range(4)]
    command = [sys.executable, "-m", "sharedfs", "mount", "--name", unique_name, "--size", "16M"]
    command += ["--cgroup-parent", f"{unique_name}-pools"]
    for place in places_of_four:
        place.mkdir()
    running = [subprocess.Popen([*command, str(place)], stderr=subprocess.PIPE, text=True) for place in places_of_four]
    answers = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    assert sorted(code for _, code in answers) == [0, 2, 2, 2]
    for message, code in answers:
        assert message == "" if code == 0 else message.count("\n") == 1
    (record,) = registry.records()
    unmount(record.mountpoint)
    nothing_left()


def test_umount_of_what_is_no_pool(run_dir: Path, plain_tmpfs: Path) -> None:
    (run_dir / "mnt").mkdir()
    for place in (run_dir / "mnt", run_dir / "missing", plain_tmpfs, Path("/")):
        assert_mistake(sharedfs("umount", str(place), check=False), "no pool is mounted", "sharedfs status")


def test_umount_of_a_busy_pool_names_its_users(pool: MountedPool) -> None:
    with opened(pool.path / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x")
        assert_mistake(sharedfs("umount", str(pool.path), check=False), "in use", f"pid {os.getpid()}")
        assert os.pread(fd, 1, 0) == b"x"
    wait_until(lambda: sharedfs("umount", str(pool.path), check=False).returncode == 0, "nobody uses it any more", 30)
    assert_mistake(sharedfs("umount", str(pool.path), check=False), "no pool is mounted")


def test_default_name_relative_path_and_spaces(
    run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch, nothing_left: Callable[[], None]
) -> None:
    (run_dir / "with space").mkdir()
    (run_dir / "link").symlink_to("with space")
    monkeypatch.chdir(run_dir)
    sharedfs("mount", "link", "--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
    (record,) = registry.records()
    assert record.mountpoint == str(run_dir / "with space")
    assert record.name == registry.name_for(record.mountpoint)
    assert json.loads(sharedfs("status", "--json").stdout)["pools"][0]["mountpoint"] == record.mountpoint
    unmount("with space")
    nothing_left()


def test_a_low_limit_of_open_files_is_raised(run_dir: Path, unique_name: str) -> None:
    """A login shell allows 1024 descriptors; a pool's caches need more."""
    place = run_dir / "mnt"
    place.mkdir()
    command = [sys.executable, "-m", "sharedfs", "mount", str(place), "--name", unique_name, "--size", "64M"]
    command += ["--cgroup-parent", f"{unique_name}-pools"]
    subprocess.run(["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *command], check=True, timeout=30)
    try:
        for number in range(1500):
            (place / f"{number}").write_bytes(b"x")
        assert all((place / f"{number}").read_bytes() == b"x" for number in range(1500))
    finally:
        unmount(str(place))


def test_a_hard_limit_of_open_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_dir: Path) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(CallerMistake, match="ulimit -Hn"):
        mounting.mount_in_foreground(PoolOptions(str(tmp_path), "test", 1 << 20))


def test_without_a_fuse_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) != "/dev/fuse" and exists(path))
    with pytest.raises(CallerMistake, match="modprobe fuse"):
        mounting.check(PoolOptions(str(tmp_path), "test", 1 << 20))


def test_a_run_directory_too_deep_for_sockets(
    mount: MountCommand, run_dir: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: Callable[[], None]
) -> None:
    (run_dir / "mnt").mkdir()
    monkeypatch.setenv("SHAREDFS_RUN_DIR", str(run_dir / ("d" * 100)))
    assert_mistake(mount(run_dir / "mnt"), "too long for a socket")
    nothing_left()


def test_the_feed_is_for_root_only(pool: MountedPool) -> None:
    path = paths.feed_socket(pool.name)
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_check_says_what_is_wrong_and_mounts_nothing(pool: MountedPool, run_dir: Path, unique_name: str) -> None:
    place = run_dir / "other"
    assert_mistake(sharedfs("mount", "--check", str(place), "--size", "16M", check=False), "does not exist")
    place.mkdir()
    assert_mistake(sharedfs("mount", "--check", str(place), "-o", "sise=16M", check=False), "sise")
    assert sharedfs("mount", "--check", str(place), "--size", "16M").stdout.startswith("ok: ")
    for disk in ("/proc", "/sys"):
        spill = ("--unclaimed", "spill", "--spill-dir", disk)
        for check in (("--check",), ()):
            refused = sharedfs("mount", *check, str(place), "--size", "16M", *spill, check=False)
            assert_mistake(refused, f"{disk} is on a filesystem that keeps no files")
    assert mount_at(str(place)) is None
    assert list(place.iterdir()) == []
    # A unit's file is checked while its pool is served.
    assert sharedfs("mount", "--check", str(pool.path), "--name", pool.name, "--size", "512M").stdout.startswith("ok: ")
    assert pool.status().size_bytes == 256 << 20


@pytest.mark.parametrize(("place", "warns"), [("dev/shm", True), ("dev/shmem", False)])
def test_a_pool_at_dev_shm(tmp_path: Path, run_dir: Path, unique_name: str, place: str, warns: bool) -> None:
    """Older programs do not take it for one."""
    (tmp_path / place).mkdir(parents=True)
    done = sharedfs("mount", "--check", str(tmp_path / place), "--name", unique_name, "--size", "16M")
    assert ("glibc before 2.34" in done.stderr) is warns


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_cost_the_pool_nothing(
    run_dir: Path, unique_name: str, mount_options: list[str], closed: str
) -> None:
    """The keeper's log took the number of the pool's lock: a pool that served was taken for dead, and replaced."""
    place = run_dir / "mnt"
    place.mkdir()
    command = [sys.executable, "-m", "sharedfs", "mount", str(place), "--name", unique_name, *mount_options]
    mounted = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], timeout=60, check=False)
    assert mounted.returncode == 0
    try:
        (place / "f").write_bytes(b"precious")
        assert unique_name in sharedfs("status").stdout
        second = run_dir / "second"
        second.mkdir()
        refused = sharedfs("mount", str(second), "--name", unique_name, *mount_options, check=False)
        assert refused.returncode == 2, refused.stderr
        sharedfs("reload", str(place))
        with (place / "f").open("rb") as file:
            in_use = sharedfs("umount", str(place), check=False)
            assert in_use.returncode == 2
            assert file.read() == b"precious"
    finally:
        sharedfs("umount", str(place))
