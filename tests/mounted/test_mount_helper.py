"""mount(8), fstab and umount(8): the pool is a filesystem like others to them, by its helper in /sbin."""

import os
import stat
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from sharedfs.linux.mountinfo import mount_at, mounts
from sharedfs.mount import mount_helper, mounting
from sharedfs.pool import registry
from tests.support.mount_command import Run, flags, mounted_at, refused, run
from tests.support.posix import as_user, opened
from tests.support.tenants import wait_until

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("helper")


def test_mount_and_umount(mount: Run, mountpoint: Path, unique_name: str, nothing_left: Callable[[], None]) -> None:
    """It serves as soon as mount(8) returns, and is gone soon after umount(8) does."""
    mount("allow_other")
    (mountpoint / "f").write_bytes(b"served")
    record = registry.read_record(unique_name)
    assert record is not None
    assert record.mountpoint == str(mountpoint)
    found = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", str(mountpoint))
    assert found.stdout.split() == [unique_name, mounting.FILESYSTEM_TYPE]
    assert f"{unique_name} on {mountpoint} type fuse.sharedfs (rw,nosuid,nodev," in run("mount").stdout
    assert run("umount", "-t", "fuse.sharedfs", str(mountpoint)).returncode == 0
    nothing_left()
    wait_until(lambda: not registry.is_served(record), "the daemon has ended")
    assert os.listdir(mountpoint) == []


def test_umount_of_a_pool_in_use_is_refused_by_the_kernel(mount: Run, mountpoint: Path) -> None:
    mount()
    with opened(mountpoint / "f", os.O_RDWR | os.O_CREAT):
        done = run("umount", str(mountpoint))
        assert done.returncode == 32
        assert "busy" in done.stderr
    assert (mountpoint / "f").exists()


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
    mount: Run, mountpoint: Path, run_dir: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    failure = mount_helper.EXIT_MOUNT_FAILURE
    refused(mount("size=900t", ok=False), failure, "at most this host's memory")
    for name, where, expected in (
        ("a/b", mountpoint, "letters, digits"),
        (unique_name, run_dir / "missing", "does not exist"),
    ):
        done = run("mount", "-t", "fuse.sharedfs", name, str(where), "-o", "size=16m")
        refused(done, failure, expected)
    (mountpoint / "f").write_bytes(b"")
    refused(mount(ok=False), failure, "not empty")
    nothing_left()


def test_a_host_that_lets_us_not_is_a_system_error(
    mountpoint: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    """Descriptors enough for the keeper, and address space too small for the books of the daemon."""
    options = f"size=16m,cgroup_parent={unique_name}-pools"
    mount = ["mount", "-t", "fuse.sharedfs", unique_name, str(mountpoint), "-o", options]
    for limit, advice in ((f"--as={2 << 30}", "ulimit -v unlimited"), (f"--fsize={1 << 20}", "ulimit -f unlimited")):
        refused(run("prlimit", limit, *mount), mount_helper.EXIT_SYSTEM, advice)
        nothing_left()


def test_a_parent_that_is_no_cgroup_is_a_mistake(
    mountpoint: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    options = "size=16m,cgroup_parent=cgroup.procs/x"
    done = run("mount", "-t", "fuse.sharedfs", unique_name, str(mountpoint), "-o", options)
    refused(done, mount_helper.EXIT_MOUNT_FAILURE, "cgroup.procs is a file of cgroups")
    nothing_left()


def test_the_helpers_own_options(
    mount: Run, mountpoint: Path, unique_name: str, nothing_left: Callable[[], None]
) -> None:
    done = mount("", "-f", "-v")
    assert done.stdout == f"mount.fuse.sharedfs: {unique_name} would be mounted on {mountpoint}\n"
    refused(mount("blue", "-f", ok=False), mount_helper.EXIT_INVOCATION, "blue")
    (mountpoint / "f").touch()
    refused(mount("", "-f", ok=False), mount_helper.EXIT_MOUNT_FAILURE, "not empty")
    (mountpoint / "f").unlink()
    nothing_left()
    done = mount("blue,colour=red", "-n", "-s", "-v")
    assert done.stdout == f"mount.fuse.sharedfs: {unique_name} is mounted on {mountpoint}\n"
    assert mounted_at(mountpoint).source == unique_name


def test_the_helper_explains_itself(helper: Path) -> None:
    done = run(str(helper), "--help")
    assert done.returncode == 0
    assert "Example: mount -t fuse.sharedfs NAME /mnt/shared" in done.stdout
    for arguments in ((), ("name",), ("name", "/mnt", "-Z"), ("name", "/mnt", "-t", "ext4")):
        refused(run(str(helper), *arguments), mount_helper.EXIT_INVOCATION, "--help")


def test_who_is_not_root_is_told(mountpoint: Path) -> None:
    """As mount(8) runs the helper for a `user` mount. In a fork: another user need not reach this interpreter."""

    def call() -> tuple[object, str]:
        said = StringIO()
        arguments = [mount_helper.PROGRAM, "name", str(mountpoint), "-o", "rw,noexec,nosuid,nodev,user"]
        with patch("sys.argv", arguments), redirect_stderr(said), pytest.raises(SystemExit) as end:
            mount_helper.main()
        return end.value.code, said.getvalue()

    code, said = as_user(call)
    assert code == mount_helper.EXIT_INVOCATION
    assert "as root" in said
    assert said.count("\n") == 1


def test_from_fstab(fstab: Callable[[str], Path], mountpoint: Path, nothing_left: Callable[[], None]) -> None:
    table = str(fstab("defaults,nofail,_netdev,x-systemd.automount,x-gvfs-hide,mode=711,comment=mine"))
    for command in (("mount", "-T", table, str(mountpoint)), ("mount", "--fstab", table, "-a")):
        for _ in range(2 if "-a" in command else 1):  # what is mounted already stays as it is
            done = run(*command)
            assert (done.returncode, done.stderr) == (0, "")
        assert flags(mountpoint) == {"rw", "nosuid", "nodev", "relatime"}
        assert stat.S_IMODE(mountpoint.stat().st_mode) == 0o711
        assert len([mount for mount in mounts() if mount.mountpoint == str(mountpoint)]) == 1
        assert run("umount", str(mountpoint)).returncode == 0
        nothing_left()


def test_flags_from_fstab(fstab: Callable[[str], Path], mountpoint: Path) -> None:
    table = str(fstab("noauto,suid,dev,noatime"))
    assert run("mount", "-T", table, "-a").returncode == 0
    assert mount_at(str(mountpoint)) is None, "noauto"
    assert run("mount", "-T", table, str(mountpoint)).returncode == 0
    assert flags(mountpoint) == {"rw", "noatime"}
    assert run("umount", str(mountpoint)).returncode == 0
    table = str(fstab("user,noauto"))
    wait_until(lambda: run("mount", "-T", table, str(mountpoint)).returncode == 0, "the pool's name is free again")
    assert flags(mountpoint) == {"rw", "nosuid", "nodev", "noexec", "relatime"}, "what `user` implies"
    assert run("mount", "-T", table, "-o", "remount,size=8m", str(mountpoint)).returncode == 0
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 8 * MIB
