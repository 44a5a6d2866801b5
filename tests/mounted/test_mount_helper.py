"""mount(8), fstab and umount(8): the pool is a filesystem like others to them, by its helper in /sbin."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from sharedfs.api.types import PoolStatus
from sharedfs.common import paths
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import Mount, mount_at, mounts
from sharedfs.mount import mount_helper, mounting
from sharedfs.pool import registry
from tests.support.mount import MountedPool, sharedfs, unmount_whatever_happened
from tests.support.mount_helper import installed_helper
from tests.support.posix import as_user, fails, opened, tmpfs
from tests.support.tenants import wait_until

Run = Callable[..., subprocess.CompletedProcess[str]]

EPERM, EACCES, EROFS = 1, 13, 30
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def helper() -> Iterator[Path]:
    with installed_helper() as placed:
        yield placed


@pytest.fixture
def place(run_dir: Path) -> Iterator[Path]:
    """An empty directory; whatever the test mounts there is gone afterwards."""
    run_dir.chmod(0o755)  # other users come through
    directory = run_dir / "mnt"
    directory.mkdir()
    yield directory
    unmount_whatever_happened(directory)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")


@pytest.fixture
def mount(place: Path, unique_name: str) -> Run:
    """`mount -t fuse.sharedfs` at `place` with options; a size and a cgroup of the test's own come first."""

    def mount_with(options: str = "", *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        own = f"size=64m,cgroup_parent={unique_name}-pools,{options}"
        done = run("mount", *arguments, "-t", "fuse.sharedfs", unique_name, str(place), "-o", own)
        if ok:
            assert (done.returncode, done.stderr) == (0, "")
        return done

    return mount_with


@pytest.fixture
def remount(place: Path) -> Run:
    def remount_with(options: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = run("mount", "-o", f"remount,{options}", str(place))
        if ok:
            assert (done.returncode, done.stderr) == (0, "")
        return done

    return remount_with


@pytest.fixture
def fstab(place: Path, unique_name: str, run_dir: Path) -> Callable[[str], Path]:
    """An fstab with one line, for `place`."""

    def write(options: str) -> Path:
        file = run_dir / "fstab"
        own = f"size=64m,cgroup_parent={unique_name}-pools"
        file.write_text(f"# a comment\n{unique_name} {place} fuse.sharedfs {own},{options} 0 0\n")
        return file

    return write


@pytest.fixture
def nothing_left(run_dir: Path, unique_name: str) -> Callable[[], None]:
    def gone() -> bool:
        return (
            not [mount for mount in mounts() if mount.mountpoint.startswith(str(run_dir))]
            and not find_memory_hierarchy().directory(f"{unique_name}-pools").exists()
            and (not paths.pools_directory().exists() or not list(paths.pools_directory().iterdir()))
        )

    return lambda: (
        wait_until(lambda: gone() or None, "neither mount nor cgroup nor run-time directory is left") and None
    )


def mounted_at(place: Path) -> Mount:
    mounted = mount_at(str(place))
    assert mounted is not None
    return mounted


def flags(place: Path) -> set[str]:
    mounted = mounted_at(place)
    return {*mounted.options, *(mounted.super_options & {"sync", "dirsync", "lazytime"})}


def refused(done: subprocess.CompletedProcess[str], code: int, *expected: str) -> None:
    """One line on standard error, that says whose it is and `expected`."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith(("mount.fuse.sharedfs: ", "sharedfs: ")), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for text in expected:
        assert text in done.stderr


def test_mount_and_umount(mount: Run, place: Path, unique_name: str, nothing_left: Callable[[], None]) -> None:
    """It serves as soon as mount(8) returns, and is gone soon after umount(8) does."""
    mount("allow_other")
    (place / "f").write_bytes(b"served")
    record = registry.read_record(unique_name)
    assert record is not None
    assert record.mountpoint == str(place)
    found = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", str(place))
    assert found.stdout.split() == [unique_name, mounting.FILESYSTEM_TYPE]
    assert f"{unique_name} on {place} type fuse.sharedfs (rw,nosuid,nodev," in run("mount").stdout
    assert run("umount", "-t", "fuse.sharedfs", str(place)).returncode == 0
    nothing_left()
    wait_until(lambda: not registry.is_served(record), "the daemon has ended")
    assert os.listdir(place) == []


def test_umount_of_a_pool_in_use_is_refused_by_the_kernel(mount: Run, place: Path) -> None:
    mount()
    with opened(place / "f", os.O_RDWR | os.O_CREAT):
        done = run("umount", str(place))
        assert done.returncode == 32
        assert "busy" in done.stderr
    assert (place / "f").exists()


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
def test_flags(mount: Run, place: Path, unique_name: str, options: str, expected: set[str]) -> None:
    mount(options)
    assert flags(place) == expected
    status = MountedPool(place, unique_name).status()
    assert set(status.flags.split(",")) == expected


@pytest.mark.parametrize("options", ["", "dev,suid,noexec"])
def test_sharedfs_mount_takes_the_same_words(place: Path, unique_name: str, options: str) -> None:
    own = ("--name", unique_name, "--cgroup-parent", f"{unique_name}-pools")
    sharedfs("mount", str(place), *own, "-o", f"size=1%,mode=700,{options}", "--size", "32M")
    assert flags(place) == ({"rw", "noexec", "relatime"} if options else {"rw", "nosuid", "nodev", "relatime"})
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 32 * MIB, "an option of its own wins"
    sharedfs("mount", str(place), "-o", "remount,ro,size=16m")
    assert flags(place) == ({"ro", "noexec", "relatime"} if options else {"ro", "nosuid", "nodev", "relatime"})
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 16 * MIB
    done = sharedfs("mount", str(place), "-o", "remount,size=8m", "--name", "other", check=False)
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("blue", ("blue is no mount option", "size=", "noatime")),
        ("size=1.5g", ("size=1.5g", "such as 512M")),
        ("mode=9", ("mode=9",)),
        ("allow_root", ("allow_root",)),
    ],
)
def test_options_that_are_none_are_an_incorrect_invocation(
    mount: Run, nothing_left: Callable[[], None], options: str, expected: tuple[str, ...]
) -> None:
    refused(mount(options, ok=False), mount_helper.EXIT_INVOCATION, *expected)
    nothing_left()


def test_what_cannot_be_mounted_is_a_mount_failure(
    mount: Run, place: Path, run_dir: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    failure = mount_helper.EXIT_MOUNT_FAILURE
    refused(mount("size=900t", ok=False), failure, "at most this host's memory")
    for name, where, expected in (
        ("a/b", place, "letters, digits"),
        (unique_name, run_dir / "missing", "does not exist"),
    ):
        done = run("mount", "-t", "fuse.sharedfs", name, str(where), "-o", "size=16m")
        refused(done, failure, expected)
    (place / "f").write_bytes(b"")
    refused(mount(ok=False), failure, "not empty")
    nothing_left()


def test_a_host_that_lets_us_not_is_a_system_error(
    place: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    not_a_cgroup = find_memory_hierarchy().directory("/") / "cgroup.procs"
    options = f"size=16m,cgroup_parent={not_a_cgroup.name}/x"
    done = run("mount", "-t", "fuse.sharedfs", unique_name, str(place), "-o", options)
    refused(done, mount_helper.EXIT_SYSTEM, "cgroup.procs")
    nothing_left()


def test_the_helpers_own_options(mount: Run, place: Path, unique_name: str, nothing_left: Callable[[], None]) -> None:
    done = mount("", "-f", "-v")
    assert done.stdout == f"mount.fuse.sharedfs: {unique_name} would be mounted on {place}\n"
    refused(mount("blue", "-f", ok=False), mount_helper.EXIT_INVOCATION, "blue")
    (place / "f").touch()
    refused(mount("", "-f", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "not empty")
    (place / "f").unlink()
    nothing_left()
    done = mount("blue,colour=red", "-n", "-s", "-v")
    assert done.stdout == f"mount.fuse.sharedfs: {unique_name} is mounted on {place}\n"
    assert mounted_at(place).source == unique_name


def test_the_helper_explains_itself(helper: Path) -> None:
    done = run(str(helper), "--help")
    assert done.returncode == 0
    assert "Example: mount -t fuse.sharedfs NAME /mnt/shared" in done.stdout
    for arguments in ((), ("name",), ("name", "/mnt", "-Z"), ("name", "/mnt", "-t", "ext4")):
        refused(run(str(helper), *arguments), mount_helper.EXIT_INVOCATION, "--help")


def test_who_is_not_root_is_told(place: Path) -> None:
    """As mount(8) runs the helper for a `user` mount. In a fork: another user need not reach this interpreter."""

    def call() -> tuple[object, str]:
        said = StringIO()
        arguments = [mount_helper.PROGRAM, "name", str(place), "-o", "rw,noexec,nosuid,nodev,user"]
        with patch("sys.argv", arguments), redirect_stderr(said), pytest.raises(SystemExit) as end:
            mount_helper.main()
        return end.value.code, said.getvalue()

    code, said = as_user(call)
    assert code == mount_helper.EXIT_INVOCATION
    assert "as root" in said
    assert said.count("\n") == 1


def test_from_fstab(fstab: Callable[[str], Path], place: Path, nothing_left: Callable[[], None]) -> None:
    table = str(fstab("defaults,nofail,_netdev,x-systemd.automount,x-gvfs-hide,mode=711,comment=mine"))
    for command in (("mount", "-T", table, str(place)), ("mount", "--fstab", table, "-a")):
        for _ in range(2 if "-a" in command else 1):  # what is mounted already stays as it is
            done = run(*command)
            assert (done.returncode, done.stderr) == (0, "")
        assert flags(place) == {"rw", "nosuid", "nodev", "relatime"}
        assert stat.S_IMODE(place.stat().st_mode) == 0o711
        assert len([mount for mount in mounts() if mount.mountpoint == str(place)]) == 1
        assert run("umount", str(place)).returncode == 0
        nothing_left()


def test_flags_from_fstab(fstab: Callable[[str], Path], place: Path) -> None:
    table = str(fstab("noauto,suid,dev,noatime"))
    assert run("mount", "-T", table, "-a").returncode == 0
    assert mount_at(str(place)) is None, "noauto"
    assert run("mount", "-T", table, str(place)).returncode == 0
    assert flags(place) == {"rw", "noatime"}
    assert run("umount", str(place)).returncode == 0
    table = str(fstab("user,noauto"))
    wait_until(lambda: run("mount", "-T", table, str(place)).returncode == 0, "the pool's name is free again")
    assert flags(place) == {"rw", "nosuid", "nodev", "noexec", "relatime"}, "what `user` implies"
    assert run("mount", "-T", table, "-o", "remount,size=8m", str(place)).returncode == 0
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 8 * MIB


def test_remount_flags(mount: Run, remount: Run, place: Path) -> None:
    mount()
    (place / "f").write_bytes(b"x")
    remount("ro")
    assert flags(place) == {"ro", "nosuid", "nodev", "relatime"}
    with fails(EROFS):
        (place / "f").write_bytes(b"y")
    remount("rw,noexec,noatime,sync")
    assert flags(place) == {"rw", "nosuid", "nodev", "noexec", "noatime", "sync"}
    remount("exec,async,suid")
    assert flags(place) == {"rw", "nodev", "noatime"}
    remount("nosuid")
    assert flags(place) == {"rw", "nosuid", "nodev", "noatime"}
    assert (place / "f").read_bytes() == b"x"


def test_remount_read_only_with_a_writer(mount: Run, remount: Run, place: Path) -> None:
    mount("size=64m")
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as fd:
        done = remount("ro,size=32m", ok=False)
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, "open for writing", f"pid {os.getpid()}")
        assert os.write(fd, b"x") == 1
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 64 * MIB, "nothing has changed"


def test_remount_size(mount: Run, remount: Run, place: Path, unique_name: str) -> None:
    mount("size=16m,idle=300")
    pool = MountedPool(place, unique_name)

    def status() -> PoolStatus:
        return pool.status()

    with fails(28):
        (place / "f").write_bytes(bytes(20 * MIB))
    remount("size=32m")
    (place / "f").write_bytes(bytes(20 * MIB))
    assert status().size_bytes == 32 * MIB
    refused(
        remount("ro,size=8m", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "size=8.00M is less than the 20.0M in use"
    )
    assert status().size_bytes == 32 * MIB
    assert "rw" in flags(place), "the flags are as they were"
    refused(remount("size=900t", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "at most this host's memory")
    (place / "f").unlink()
    wait_until(lambda: pool.resident_by_statfs() == 0, "the file is forgotten")
    remount("size=8m,idle=20.5")
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 8 * MIB
    assert "idle=20.5" in status().settings


def test_remount_names_what_cannot_change(mount: Run, remount: Run, place: Path, unique_name: str) -> None:
    mount()
    pool = MountedPool(place, unique_name)
    before = pool.status()
    for word in ("mode=700", "uid=3", "gid=3", "reserve=4k", "cgroup_parent=other", "no_passthrough"):
        done = remount(f"noexec,size=32m,{word}", ok=False)
        named = word.partition("=")[0].removeprefix("no_")
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, f"{named} cannot change")
    refused(remount("noexec,blue", ok=False), mount_helper.EXIT_INVOCATION, "blue is no mount option")
    after = pool.status()
    assert (after.flags, after.settings) == (before.flags, before.settings), "nothing has changed"


def test_remount_of_what_is_no_pool(run_dir: Path) -> None:
    with tmpfs(run_dir / "tmpfs") as other:
        done = run("mount", "-t", "fuse.sharedfs", "-o", "remount,ro", "name", str(other))
        refused(done, mount_helper.EXIT_MOUNT_FAILURE, "no pool is mounted")
        done = sharedfs("mount", str(other), "-o", "remount,ro", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "rw" in mounted_at(other).options
