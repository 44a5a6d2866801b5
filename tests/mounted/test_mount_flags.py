"""Flags and settings given to mount(8): a pool takes them as tmpfs does."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from errno import EACCES, EROFS
from pathlib import Path

import pytest

from tests.support.mount import MountedPool, sharedfs
from tests.support.mount_command import Run, flags, run
from tests.support.posix import as_user, fails, opened

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("helper")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"rw", "nosuid", "nodev", "relatime"}),
        ("dev,suid", {"rw", "relatime"}),
        ("suid,dev,nosuid", {"rw", "nosuid", "relatime"}),
        ("noatime,nodiratime", {"rw", "nosuid", "nodev", "noatime", "nodiratime"}),
        ("strictatime,noexec", {"rw", "nosuid", "nodev", "noexec"}),
        ("ro,sync,dirsync", {"ro", "nosuid", "nodev", "relatime", "sync", "dirsync"}),
    ],
)
def test_flags(mount: Run, mountpoint: Path, unique_name: str, options: str, expected: set[str]) -> None:
    mount(options)
    assert flags(mountpoint) == expected
    status = MountedPool(mountpoint, unique_name).status()
    assert set(status.flags.split(",")) == expected


@pytest.mark.parametrize("options", ["", "dev,suid,noexec"])
def test_sharedfs_mount_takes_the_same_words(mountpoint: Path, unique_name: str, options: str) -> None:
    own = ("--name", unique_name, "--cgroup-parent", f"{unique_name}-pools")
    sharedfs("mount", str(mountpoint), *own, "-o", f"size=1%,mode=700,{options}", "--size", "32M")
    assert flags(mountpoint) == ({"rw", "noexec", "relatime"} if options else {"rw", "nosuid", "nodev", "relatime"})
    assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o700
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 32 * MIB, "an option of its own wins"
    sharedfs("mount", str(mountpoint), "-o", "remount,ro,size=16m")
    assert flags(mountpoint) == ({"ro", "noexec", "relatime"} if options else {"ro", "nosuid", "nodev", "relatime"})
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 16 * MIB
    done = sharedfs("mount", str(mountpoint), "-o", "remount,size=8m", "--name", "other", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.fixture(params=["tmpfs", "sharedfs"])
def either(request: pytest.FixtureRequest, mount: Run, run_dir: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts tmpfs or a pool with options, the same on both."""
    if request.param == "sharedfs":
        yield lambda options: (mount(options), run_dir / "mnt")[1]
        return
    directory = run_dir / "tmpfs"

    def mount_tmpfs(options: str) -> Path:
        directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
        return directory

    yield mount_tmpfs
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_read_only(either: Callable[[str], Path]) -> None:
    root = either("ro,size=16m")
    with fails(EROFS):
        (root / "f").write_bytes(b"x")
    with fails(EROFS):
        (root / "d").mkdir()
    assert os.listdir(root) == []


def test_no_programs(either: Callable[[str], Path]) -> None:
    program = either("noexec,size=16m") / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    with fails(EACCES):
        subprocess.run([program], check=True)


@pytest.mark.parametrize("allowed", [True, False])
def test_devices(either: Callable[[str], Path], allowed: bool) -> None:
    null = either(f"{'dev' if allowed else 'nodev'},size=16m") / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if allowed:
        with opened(null, os.O_RDWR) as fd:
            assert os.write(fd, b"swallowed") == 9
            assert os.read(fd, 1) == b""
    else:
        with fails(EACCES):
            os.open(null, os.O_RDWR)


@pytest.mark.parametrize("allowed", [True, False])
def test_set_id_programs(either: Callable[[str], Path], run_dir: Path, allowed: bool) -> None:
    program = either(f"{'suid' if allowed else 'nosuid'},size=16m,mode=755") / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    user = as_user(lambda: subprocess.run([program, "-u"], capture_output=True, text=True, check=True, cwd="/").stdout)
    assert user == ("0\n" if allowed else "1000\n")


@pytest.mark.parametrize(
    ("options", "moves_at_once", "moves_at_all"),
    [("strictatime", True, True), ("relatime", False, True), ("noatime", False, False)],
)
def test_access_times(either: Callable[[str], Path], options: str, moves_at_once: bool, moves_at_all: bool) -> None:
    """relatime moves an access time that is no later than the last change, once."""
    file = either(f"{options},size=16m") / "f"
    file.write_bytes(b"x")
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(1, later))
    file.read_bytes()
    assert (file.stat().st_atime_ns > 1) == moves_at_all
    recent = file.stat().st_ctime_ns + 10**12
    os.utime(file, ns=(recent, 1))
    file.read_bytes()
    assert (file.stat().st_atime_ns != recent) == moves_at_once


def test_access_times_after_a_remount(either: Callable[[str], Path]) -> None:
    root = either("strictatime,size=16m")
    file = root / "f"
    file.write_bytes(b"x")
    for options, moves in (("noatime", False), ("strictatime", True)):
        assert run("mount", "-o", f"remount,{options}", str(root)).returncode == 0
        os.utime(file, ns=(1, 1))
        file.read_bytes()
        assert (file.stat().st_atime_ns > 1) == moves


def test_the_root_is_as_asked(either: Callable[[str], Path]) -> None:
    root = either("mode=2750,uid=1000,gid=1001,size=16m")
    found = root.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o2750, 1000, 1001)
    as_user(lambda: (root / "f").write_bytes(b"the owner's"))
    assert (root / "f").stat().st_gid == 1001


def test_size_in_lower_case_and_percent(either: Callable[[str], Path]) -> None:
    root = either("size=1%")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize == pytest.approx(memory // 100, rel=0.02)


def test_number_of_inodes(either: Callable[[str], Path]) -> None:
    root = either("nr_inodes=11,size=16m")
    for number in range(10):  # the root is one
        (root / f"{number}").touch()
    with fails(28):
        (root / "10").touch()
    assert (os.statvfs(root).f_files, os.statvfs(root).f_ffree) == (11, 0)
    assert run("mount", "-o", "remount,nr_inodes=12", str(root)).returncode == 0
    assert (os.statvfs(root).f_files, os.statvfs(root).f_ffree) == (12, 1)
    (root / "10").touch()
    assert run("mount", "-o", "remount,nr_inodes=3", str(root)).returncode == 32
