"""A pool whose daemon kills itself where a test wants it (`sharedfs/storage/fault_injection.py`)."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.pool.schema import StateFile
from sharedfs.storage import fault_injection
from sharedfs.storage.fault_injection import Point, armed_word
from tests.support.kills import is_zombie
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import wait_until

HIDDEN_INODES = 3  # of the store: its root, tree/ and removed/


class Armed:
    """The pool's state and store, as only root sees them: through the keeper's descriptors."""

    def __init__(self, pool: MountedPool) -> None:
        self.pool = pool
        self.state = pool.kept(StateFile.FAULTS)
        self.store = pool.kept("removed")
        self.log = paths.daemon_log(pool.name)

    def arm(self, opcode: int, point: Point, how: int = 0) -> None:
        """`how` are flags of `faults`."""
        with (self.state / StateFile.FAULTS).open("r+b") as file:
            file.write((armed_word(opcode, point) | how).to_bytes(8, "little"))

    def disarm(self) -> None:
        with (self.state / StateFile.FAULTS).open("r+b") as file:
            file.write(bytes(8))

    def restarted_since(self, restarts: int) -> bool:
        status = self.pool.status_or_none()
        return status is not None and status.restarts > restarts

    @contextmanager
    def not_restarted(self) -> Iterator[Callable[[], bool]]:
        """A daemon that dies within has no successor until afterwards. Gives what tells that it has died."""
        status = self.pool.status()
        os.kill(status.keeper_pid, signal.SIGSTOP)
        try:
            yield lambda: is_zombie(status.daemon_pid)
        finally:
            os.kill(status.keeper_pid, signal.SIGCONT)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No request is answered within."""
        process_id = self.pool.status().daemon_pid
        os.kill(process_id, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process_id, signal.SIGCONT)

    def remove_all(self) -> None:
        """Everything, and the kernel forgets all of it."""
        shutil.rmtree(self.pool.path / "d")
        wait_until(lambda: os.listdir(self.store / "removed") == [], "nothing is left in removed/", 20)
        wait_until(lambda: self.inodes_in_use() == HIDDEN_INODES, "no inode is left")
        assert "the kernel forgets" not in self.log.read_text()

    def inodes_in_use(self) -> int:
        pool = os.statvfs(self.store)
        return pool.f_files - pool.f_ffree

    def opens_of(self, inode: int) -> int:
        with (self.state / "nodes").open("rb") as table:
            table.seek(inode * 16 + 8)
            return int.from_bytes(table.read(8), "little") & ~(3 << 30)  # two bits that are no part of the number


@contextmanager
def armed_pool(kind: str = "faults", **environment: str) -> Iterator[Armed]:
    name = f"sharedfs-test-{os.getpid()}-{kind}"
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAREDFS_RUN_DIR", f"{directory}/run")
        patch.setenv(fault_injection.VARIABLE, "1")
        for variable, value in environment.items():
            patch.setenv(variable, value)
        options = ("--size", "64M", "--cgroup-parent", f"{name}-pools")
        with mounted_pool(Path(directory) / "mnt", name, *options) as pool:
            yield Armed(pool)
