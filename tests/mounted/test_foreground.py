"""A pool in the foreground: it ends by a signal or umount(8), and the host is as it was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOTCONN
from pathlib import Path

import pytest

from sharedfs.linux.mountinfo import mount_at
from tests.support.deaths import assert_nothing_left, opened_until_death
from tests.support.mount import sharedfs, unmount_whatever_happened
from tests.support.posix import Child, fails
from tests.support.tenants import wait_until


@contextmanager
def in_foreground(place: Path, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    place.mkdir()
    daemon = subprocess.Popen([sys.executable, "-m", "sharedfs", "mount", str(place), "--foreground", *options])
    try:
        wait_until(lambda: b"x" if sharedfs("status", "--json").stdout.count(str(place)) else b"", "it serves", 60)
        yield daemon
    finally:
        unmount_whatever_happened(place)
        daemon.wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_foreground_daemon_and_puts_everything_back(
    run_dir: Path, unique_name: str, mount_options: list[str], number: signal.Signals
) -> None:
    with in_foreground(run_dir / "mnt", mount_options) as daemon, opened_until_death(run_dir / "mnt" / "f") as fd:
        os.write(fd, b"in use all the while")

        def use() -> None:
            with suppress(OSError):  # ends with the connection
                while True:
                    os.pread(fd, 10, 0)
                    os.fchmod(fd, 0o600)

        users = [Child(use) for _ in range(3)]
        time.sleep(0.2)
        daemon.send_signal(number)
        assert daemon.wait(10) == 0
        assert_nothing_left(run_dir / "mnt", unique_name)
        with fails(ENOTCONN):
            os.pread(fd, 1, 0)
        for user in users:
            user.result()


def test_umount_ends_the_foreground_daemon(run_dir: Path, unique_name: str, mount_options: list[str]) -> None:
    with in_foreground(run_dir / "mnt", mount_options) as daemon:
        subprocess.run(["umount", run_dir / "mnt"], check=True)
        assert daemon.wait(10) == 0
    assert_nothing_left(run_dir / "mnt", unique_name)


def test_modules_in_the_directory_that_root_stands_in_are_not_run(
    run_dir: Path, unique_name: str, mount_options: list[str]
) -> None:
    """A tenant's directory, say: a keeper in the foreground starts where `sharedfs mount` was called."""
    strangers, place, was_run = run_dir / "strangers", run_dir / "mnt", run_dir / "was-run"
    (strangers / "sharedfs").mkdir(parents=True)
    (strangers / "sharedfs" / "__init__.py").write_text(f"open({str(was_run)!r}, 'w').close()")
    place.mkdir()
    command = Path(sys.executable).with_name("sharedfs")
    daemon = subprocess.Popen([command, "mount", place, "--foreground", *mount_options], cwd=strangers)
    try:
        wait_until(lambda: daemon.poll() is not None or mount_at(str(place)), "it serves, or has ended", 60)
        sharedfs("reload", str(place))
        assert daemon.poll() is None
        assert not was_run.exists()
    finally:
        unmount_whatever_happened(place)
        daemon.wait(20)
    subprocess.run(
        [sys.executable, "-m", "sharedfs.supervisor.keeper"], cwd=strangers, capture_output=True, check=False
    )
    assert was_run.exists(), "the control"
