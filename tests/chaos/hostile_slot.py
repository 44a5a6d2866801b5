"""A place for hostile tenants in the chaos job: one after the other, each in a cgroup of its own with a limit.

Each works for some seconds. Then its standard input is closed, or it is killed with all that it started; its directory
is removed, and its cgroup must be as free of the pool's pages as an honest tenant's.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.hostile import KINDS
from tests.chaos.traces import PATIENCE_SECONDS, charges_nothing, oom_kills, processes_below, unlike_the_books
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, wait_until

HOSTILE_LIMIT_BYTES = 96 << 20
_PROGRAM = Path(__file__).with_name("hostile.py")
_KILLED_OF_ALL = 0.4


def kinds(chance: random.Random) -> Iterator[str]:
    """All kinds in an order of chance, again and again: each comes once before one comes twice."""
    while True:
        yield from chance.sample(KINDS, len(KINDS))


@dataclass
class Hostile:
    """One tenant, from its start to its end."""

    kind: str
    tenant: Tenant
    directory: Path
    process: subprocess.Popen[str]
    temporary: Path
    ends_at: float
    is_killed: bool

    @classmethod
    def start(
        cls, kind: str, tenant: Tenant, pool_path: Path, seconds: tuple[float, float], chance: random.Random
    ) -> "Hostile":
        directory = pool_path / tenant.directory.name
        directory.mkdir()
        if kind == "owns_most":  # a bait that is there would stay another one's
            (pool_path / "bait").unlink(missing_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="sf-hostile-", dir="/tmp"))
        arguments = map(str, (_PROGRAM, kind, directory, tenant.directory, chance.getrandbits(32)))
        process = subprocess.Popen(
            tenant.join([sys.executable, "-S", "-E", *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        ends_at = time.monotonic() + chance.uniform(*seconds)
        return cls(kind, tenant, directory, process, temporary, ends_at, chance.random() < _KILLED_OF_ALL)

    def is_due(self) -> bool:
        return time.monotonic() > self.ends_at or self.process.poll() is not None

    def end(self, pool: MountedPool) -> list[str]:
        """What was wrong with it, and with what is left of it."""
        ended_itself = self.process.poll() is not None
        complaint = self._end_processes()
        errors = []
        if self.process.returncode != (-signal.SIGKILL if self.is_killed and not ended_itself else 0):
            errors.append(f"{self.kind} ended with {self.process.returncode}: {complaint[-2000:]}")
        if oom_kills(self.tenant):
            errors.append(f"{self.kind}, {self.tenant.path}: {oom_kills(self.tenant)} killed for want of memory")
        shutil.rmtree(self.temporary)
        unlike: dict[str, tuple[int, int]] | None = {}

        def agrees() -> bool:
            nonlocal unlike
            unlike = unlike_the_books(pool, self.directory)
            return unlike == {}

        if not _comes_true(agrees):
            errors.append(f"{self.kind}: files in {self.directory} have other bytes than the books say: {unlike}")
        shutil.rmtree(self.directory)
        if not _comes_true(lambda: charges_nothing(self.tenant, pool.path)):
            errors.append(f"{self.kind}: {self.tenant.path} is still charged for pages of the pool")
        for place in sorted(self.tenant.directory.glob("*/")):
            place.rmdir()
        self.tenant.exit()
        return errors

    def _end_processes(self) -> str:
        if self.is_killed:
            self.process.kill()
            wait_until(self._nobody_is_left, f"all of {self.kind} have ended", PATIENCE_SECONDS)
        return self.process.communicate(timeout=PATIENCE_SECONDS)[1]

    def _nobody_is_left(self) -> bool:
        """Kill what it started. Who hangs in execve ends with the last of those whom it waits for."""
        self.process.poll()
        left = processes_below(self.tenant.directory)
        for process_id in left:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        return not left


def _comes_true(condition: Callable[[], bool]) -> bool:
    try:
        return wait_until(condition, "it comes true", PATIENCE_SECONDS)
    except AssertionError:
        return False
