"""Packages of other versions than this one, installed by a link that is changed while a pool serves.

They are copies of this package with other numbers (`sharedfs/pool/schema.py`), and with what an older one does not know
taken out of them.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sharedfs.common import paths
from sharedfs.pool import schema
from tests.support.mount import MountedPool, sharedfs, unmount_whatever_happened
from tests.support.service_manager import Manager
from tests.support.tenants import Tenant, Tenants, wait_until

PATIENCE = 60
PAGE = 4096


class Package(Protocol):
    """What can be installed: `make` has its modules in a directory `sharedfs` of one that is the package's own."""

    @property
    def name(self) -> str: ...

    def make(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class Copy:
    """Of this package: what it writes, reads and leaves, and which words of it are others."""

    name: str
    version: int = schema.VERSION
    reads: tuple[int, ...] = schema.READS
    leaves: tuple[int, ...] = schema.LEAVES
    edits: list[tuple[str, str, str]] = field(default_factory=list)

    def make(self, directory: Path) -> None:
        copy = directory / "sharedfs"
        shutil.copytree(Path(paths.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
        numbers = [
            ("VERSION", schema.VERSION, self.version),
            ("READS", schema.READS, self.reads),
            ("LEAVES", schema.LEAVES, self.leaves),
        ]
        edits = [("pool/schema.py", f"\n{name} = {was}\n", f"\n{name} = {now}\n") for name, was, now in numbers]
        for file, was, now in [*edits, *self.edits]:
            text = (copy / file).read_text()
            assert text.count(was) == 1, f"{file} has {was!r} {text.count(was)} times"
            (copy / file).write_text(text.replace(was, now))


THIS = Copy("this")
SECOND = Copy(
    "second",
    2,
    (1, 2),
    (1, 2),
    [
        (
            "ledger/class_table.py",
            "        match record:\n",
            '        if (record[0] == "exit" and len(record) > 2) or "-" in repr(record):\n            return False\n'
            "        match record:\n",
        ),
        (
            "ledger/tenant.py",
            "        match record:\n",
            '        if len(record) > (2 if record[0] == "gone" else 4 - (record[0] == "tenants")):\n'
            "            return False\n"
            "        match record:\n",
        ),
    ],
)
"""As a package of version 2 is: it knows no heirs, and its daemons die of records of them in a log."""
FIRST = Copy(
    "first",
    1,
    (1,),
    (1,),
    [
        ("supervisor/prefork.py", "schema.warm()", 'b"warm"'),
        ("supervisor/prefork.py", "schema.check(kept[Held.STATE])", "pass"),
        ("daemon/service.py", "schema.take_over(kept[Held.STATE])", "pass"),
        ("daemon/service.py", "add_state_version(app, self._kept[Held.STATE])", "pass"),
        ("daemon/service.py", "schema.is_hand_over(message)", 'message == b"hand over"'),
        ("mount/mounting.py", "    _check_state_version(record, before)\n", ""),
        (
            "ledger/class_table.py",
            "        match record:\n",
            '        if record[0] in ("part", "behind", "settle", "free"):\n            return False\n'
            "        match record:\n",
        ),
    ],
)
"""As a package of version 1 is: it knows nothing of versions, and its daemons die of newer records in a log."""


class Host:
    """A pool, and the package that is installed. Who has `site` in $PYTHONPATH, or stands in it, gets that one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = directory / "site"
        self.site.mkdir(parents=True)
        self.pool: MountedPool

    def install(self, package: Package) -> None:
        made = self.directory / package.name
        if not made.exists():
            package.make(made)
        (self.site / "new").symlink_to(made / "sharedfs")
        (self.site / "new").rename(self.site / "sharedfs")

    def reload(self) -> subprocess.CompletedProcess[str]:
        """With the installed package's own command."""
        command = [sys.executable, "-m", "sharedfs", "reload", str(self.pool.path)]
        return subprocess.run(command, cwd=self.site, capture_output=True, text=True, timeout=300, check=False)

    def state_version(self) -> int | None:
        """None: it does not say."""
        file = self.pool.kept("journal") / "version"
        return int(json.loads(file.read_text())["version"]) if file.exists() else None

    def log(self) -> str:
        return paths.daemon_log(self.pool.name).read_text()


@contextmanager
def managed(host: Host, place: Path, name: str) -> Iterator[Manager]:
    """A service manager that starts keepers of what is installed, for a pool at `place`. None runs yet."""
    place.mkdir()
    host.pool = MountedPool(place, name)
    manager = Manager(host.pool, "--size", "64M", "--cgroup-parent", f"{name}-pools")
    with ExitStack() as resources:
        resources.callback(unmount_whatever_happened, place)
        resources.callback(manager.stop)
        resources.callback(lambda: sharedfs("umount", str(place), check=False))
        yield manager


class Work:
    """Two tenants, one of which has a file open, and what the books say of them."""

    def __init__(self, pool: MountedPool, tenants: Tenants) -> None:
        self.pool = pool
        self.writer, self.reader, gone = (tenants.make(name) for name in ("writer", "reader", "gone"))
        self.writer.do(f"import os; fd = os.open({str(pool.path / 'f')!r}, os.O_RDWR | os.O_CREAT, 0o666)")
        self.writer.do(f"os.pwrite(fd, b'x' * {4 * PAGE}, 0)")
        for tenant, pages in ((self.reader, 2), (gone, 3)):
            tenant.do(f"import os; fd = os.open({str(pool.path / 'f')!r}, os.O_RDONLY)")
            tenant.do(f"os.pread(fd, {pages * PAGE}, 0)")
            tenant.do("os.close(fd)")
        gone.exit()
        wait_until(lambda: not pool.knows(gone), "the pool knows of the exit", PATIENCE)
        self.bills = self.billed()

    def billed(self) -> list[int]:
        return [self.pool.used(tenant) for tenant in (self.writer, self.reader)]

    def goes_on(self) -> None:
        """The open file, its content and the bills are there, and the books take what is new."""
        assert self.billed() == self.bills == [4 * PAGE, 2 * PAGE]
        assert self.writer.do(f"result = os.pread(fd, {5 * PAGE}, 0) == b'x' * {4 * PAGE}")
        self.grows(self.writer)

    def grows(self, tenant: Tenant) -> None:
        before = self.pool.used(tenant)
        tenant.do(f"other = os.open({str(self.pool.path / 'g')!r}, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)")
        tenant.do(f"os.pwrite(other, b'y' * {PAGE}, 0)")
        assert self.pool.used(tenant) == before + PAGE
        tenant.do(f"os.close(other); os.unlink({str(self.pool.path / 'g')!r})")
        wait_until(lambda: self.pool.used(tenant) == before, "the file is gone", PATIENCE)
