"""mount(8) as tests call it, and what it shows and says."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from sharedfs.linux.mountinfo import Mount, mount_at

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")


def mounted_at(mountpoint: Path) -> Mount:
    mounted = mount_at(str(mountpoint))
    assert mounted is not None
    return mounted


def flags(mountpoint: Path) -> set[str]:
    mounted = mounted_at(mountpoint)
    return {*mounted.options, *(mounted.super_options & {"sync", "dirsync", "lazytime"})}


def refused(done: subprocess.CompletedProcess[str], code: int, *expected: str) -> None:
    """One line on standard error, that says whose it is and `expected`."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith(("mount.fuse.sharedfs: ", "sharedfs: ")), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for text in expected:
        assert text in done.stderr
