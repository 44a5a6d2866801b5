"""Fixtures of more than one file of these tests."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mountinfo import mounts
from tests.support.faults import Armed, armed_pool
from tests.support.mount import unmount_whatever_happened
from tests.support.mount_command import Run, run
from tests.support.mount_helper import installed_helper
from tests.support.tenants import wait_until


@pytest.fixture
def mount_options(unique_name: str) -> list[str]:
    """Of `sharedfs mount`, for a small pool with a cgroup of the test's own."""
    return ["--name", unique_name, "--size", "64M", "--cgroup-parent", f"{unique_name}-pools"]


@pytest.fixture(scope="module")
def armed() -> Iterator[Armed]:
    """A pool whose daemon kills itself where a test wants it."""
    with armed_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def helper() -> Iterator[Path]:
    with installed_helper() as placed:
        yield placed


@pytest.fixture
def mountpoint(run_dir: Path) -> Iterator[Path]:
    """An empty directory; whatever the test mounts there is gone afterwards."""
    run_dir.chmod(0o755)  # other users come through
    directory = run_dir / "mnt"
    directory.mkdir()
    yield directory
    unmount_whatever_happened(directory)


@pytest.fixture
def mount(mountpoint: Path, unique_name: str) -> Run:
    """`mount -t fuse.sharedfs` at `mountpoint` with options; a size and a cgroup of the test's own come first."""

    def mount_with(options: str = "", *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        own = f"size=64m,cgroup_parent={unique_name}-pools,{options}"
        done = run("mount", *arguments, "-t", "fuse.sharedfs", unique_name, str(mountpoint), "-o", own)
        if ok:
            assert (done.returncode, done.stderr) == (0, "")
        return done

    return mount_with


@pytest.fixture
def remount(mountpoint: Path) -> Run:
    def remount_with(options: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = run("mount", "-o", f"remount,{options}", str(mountpoint))
        if ok:
            assert (done.returncode, done.stderr) == (0, "")
        return done

    return remount_with


@pytest.fixture
def fstab(mountpoint: Path, unique_name: str, run_dir: Path) -> Callable[[str], Path]:
    """An fstab with one line, for `mountpoint`."""

    def write(options: str) -> Path:
        file = run_dir / "fstab"
        own = f"size=64m,cgroup_parent={unique_name}-pools"
        file.write_text(f"# a comment\n{unique_name} {mountpoint} fuse.sharedfs {own},{options} 0 0\n")
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
