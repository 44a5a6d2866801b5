"""The chaos job: tenants that come, work, check what they see and go, while daemon and controller are killed.

Beside the honest ones, whose work is checked, hostile tenants come and go (`hostile.py`); none of the honest ones may
see an error or be killed. A seed gives the operations of each tenant and the moments of the kills. At the end all is
compared: contents with the models, the books with the tmpfs to the byte (I1), limits with what they were, and the host
with what it was.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sharedfs.common import paths
from sharedfs.pool import registry
from tests.chaos.hostile_slot import HOSTILE_LIMIT_BYTES, Hostile, kinds
from tests.chaos.traces import PATIENCE_SECONDS, charges_nothing, complaints, oom_kills
from tests.chaos.worker import SLICE_BYTES, XATTR
from tests.support.controller import run_sharedctl
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

_WORKER = Path(__file__).with_name("worker.py")
_AUDIT_SECONDS = 60.0  # in which one finds nothing
_LIMIT_BYTES = 128 << 20
# A daemon that dies younger than a second is a failure to the keeper, which starts the next one later and later.
_PAUSE_SECONDS = (1.0, 2.5)
_HOSTILE_SECONDS = (2.0, 5.0)


def pool_bytes(workers: int, hostile: int) -> int:
    """A size that they cannot fill: no worker may ever see ENOSPC.

    A worker has at most some 40 files of 256 KiB, with those without a name: 10 MiB. A hostile tenant has 32 MiB in
    files at a time, whatever its limit allows, and one bait of 32 MiB stays when its maker has gone. Files that go
    while a reader has them open, and holes that are filled to move pages, are the rest.
    """
    return (64 + 16 * workers + 64 * hostile) << 20


@dataclass
class Figures:
    """What the job prints."""

    seed: int
    seconds: float = 0.0
    kills: int = 0
    reloads: int = 0
    controller_kills: int = 0
    tenants: int = 0
    operations: int = 0
    longest_stall_seconds: float = 0.0
    longest_stall_in: str = ""
    hostile: dict[str, int] = field(default_factory=dict)
    hostile_killed: int = 0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass
class _Running:
    tenant: Tenant
    directory: Path
    process: subprocess.Popen[str]


class Chaos:
    """`run` returns the figures; errors are among them."""

    def __init__(self, pool: MountedPool, tenants: Tenants, seed: int, workers: int, hostile: int) -> None:
        """`workers` honest tenants at a time, and as many `hostile` ones."""
        self._pool = pool
        self._tenants = tenants
        self._random = random.Random(seed)
        self._workers = workers
        self._running: list[_Running | None] = [None] * workers
        self._hostile: list[Hostile | None] = [None] * hostile
        self._kinds = kinds(random.Random(self._random.random()))
        self._over = threading.Event()
        self._controller: subprocess.Popen[bytes] | None = None
        self._controller_log = Path(os.environ["SHAREDFS_RUN_DIR"]).parent / "controller.log"
        self.figures = Figures(seed)

    def run(self, seconds: float, progress: Callable[[Figures], None] = lambda figures: None) -> Figures:
        started = time.monotonic()
        shared = self._pool.path / "shared"
        shared.write_bytes(bytes(self._workers * SLICE_BYTES))
        keeper_descriptors = self._keeper_descriptors()
        self._start_controller()
        killer = threading.Thread(target=self._kill, args=(random.Random(self._random.random()),))
        killer.start()
        try:
            while time.monotonic() - started < seconds and not self.figures.errors:
                for place in range(self._workers):
                    self._look_after(place)
                for place in range(len(self._hostile)):
                    self._look_after_hostile(place)
                progress(self.figures)
                time.sleep(0.05)
        finally:
            self._over.set()
            killer.join()
            self._stop_controller()
            self._check_limits()
            self._audit()
            for place in range(self._workers):
                self._end(place)
            for place in range(len(self._hostile)):
                self._end_hostile(place)
        if not self.figures.errors:
            for file in (shared, self._pool.path / "bait"):
                file.unlink(missing_ok=True)
            self._compare(keeper_descriptors)
        self.figures.seconds = round(time.monotonic() - started, 1)
        return self.figures

    # -- tenants -----------------------------------------------------------------------------------------------------

    def _look_after(self, place: int) -> None:
        running = self._running[place]
        if running is None:
            self._start(place)
        elif running.process.poll() is not None:
            self._end(place)

    def _start(self, place: int) -> None:
        self.figures.tenants += 1
        tenant = self._tenants.make(f"t{self.figures.tenants}", _LIMIT_BYTES)
        directory = self._pool.path / f"t{self.figures.tenants}"
        directory.mkdir()
        seed, operations = self._random.getrandbits(32), self._random.choice((50, 500, 3000))
        arguments = map(str, (_WORKER, directory, self._pool.path / "shared", place, seed, operations))
        with (self._pool.path / "shared").open("r+b") as shared:  # who was there before left its bytes
            shared.seek(place * SLICE_BYTES)
            shared.write(bytes(SLICE_BYTES))
        process = subprocess.Popen(
            tenant.join([sys.executable, "-S", "-E", *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running[place] = _Running(tenant, directory, process)

    def _end(self, place: int) -> None:
        """The tenant's process ends; what it left is compared with what it says, and removed with its cgroup."""
        running, self._running[place] = self._running[place], None
        if running is None:
            return
        said, complaint = running.process.communicate(timeout=PATIENCE_SECONDS)
        if running.process.returncode != 0:
            killed = f"; {oom_kills(running.tenant)} killed for want of memory"
            self.figures.errors.append(f"a worker ended with {running.process.returncode}{killed}: {complaint[-2000:]}")
            return
        report = json.loads(said)
        self.figures.operations += report["operations"]
        if report["longest_stall"] > self.figures.longest_stall_seconds:
            self.figures.longest_stall_seconds = round(report["longest_stall"], 3)
            self.figures.longest_stall_in = report["stalled_in"]
        found = {entry.name: _fingerprint(Path(entry.path)) for entry in os.scandir(running.directory)}
        if found != report["files"]:
            self.figures.errors.append(f"{running.directory} holds {found} and should hold {report['files']}")
        shutil.rmtree(running.directory)
        try:  # page faults in holes were charged to it: with the files that goes, and nothing pins its cgroup
            wait_until(lambda: charges_nothing(running.tenant, self._pool.path), "no charge is left", PATIENCE_SECONDS)
        except AssertionError as failure:
            self.figures.errors.append(f"{running.tenant.path}: {failure}")
        if oom_kills(running.tenant):
            self.figures.errors.append(f"{running.tenant.path}: a process was killed for want of memory")
        running.tenant.exit()

    # -- hostile tenants ---------------------------------------------------------------------------------------------

    def _look_after_hostile(self, place: int) -> None:
        running = self._hostile[place]
        if running is None:
            kind = next(self._kinds)
            self.figures.tenants += 1
            self.figures.hostile[kind] = self.figures.hostile.get(kind, 0) + 1
            tenant = self._tenants.make(f"t{self.figures.tenants}", HOSTILE_LIMIT_BYTES)
            self._hostile[place] = Hostile.start(kind, tenant, self._pool.path, _HOSTILE_SECONDS, self._random)
        elif running.is_due():
            self._end_hostile(place)

    def _end_hostile(self, place: int) -> None:
        running, self._hostile[place] = self._hostile[place], None
        if running is not None:
            self.figures.hostile_killed += running.is_killed
            self.figures.errors += running.end(self._pool)

    # -- the killer --------------------------------------------------------------------------------------------------

    def _kill(self, chance: random.Random) -> None:
        while not self._over.wait(chance.uniform(*_PAUSE_SECONDS)):
            kind = chance.random()
            if kind < 0.85:
                status = self._pool.status_or_none()
                if status is not None:
                    with suppress(ProcessLookupError):
                        os.kill(status.daemon_pid, signal.SIGKILL)
                    self.figures.kills += 1
            elif kind < 0.92:
                record = registry.record_at(str(self._pool.path))
                if record is not None:
                    os.kill(record.keeper_pid, signal.SIGHUP)
                    self.figures.reloads += 1
            elif self._controller is not None:
                self._controller.kill()
                self._controller.wait()
                self.figures.controller_kills += 1
                self._start_controller()

    def _start_controller(self) -> None:
        with open(self._controller_log, "ab") as log:
            self._controller = subprocess.Popen(
                [sys.executable, "-m", "controller.cli.main", "run"], stdout=subprocess.DEVNULL, stderr=log
            )

    def _stop_controller(self) -> None:
        if self._controller is not None:
            self._controller.terminate()
            code = self._controller.wait(PATIENCE_SECONDS)
            if code == -signal.SIGTERM:  # it was starting still: what the unit's ExecStopPost is for
                restore = [sys.executable, "-m", "controller.cli.main", "restore"]
                code = subprocess.run(restore, stdout=subprocess.DEVNULL, check=False).returncode
            if code != 0:
                self.figures.errors.append(f"the controller ended with {code}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def _compare(self, keeper_descriptors: int) -> None:
        """All is removed and nobody is there: nothing may be left, of memory, of names, or of descriptors."""
        errors = self.figures.errors
        try:
            self._pool.check_conservation()
            wait_until(lambda: self._pool.resident_by_statfs() == 0, "all memory is back", PATIENCE_SECONDS)
            wait_until(
                lambda: os.listdir(self._pool.kept("removed") / "removed") == [], "removed/ is empty", PATIENCE_SECONDS
            )
            wait_until(
                lambda: self._keeper_descriptors() == keeper_descriptors,
                "the keeper holds what it did",
                PATIENCE_SECONDS,
            )
        except AssertionError as failure:
            errors.append(str(failure))
        daemon_log = paths.daemon_log(self._pool.name)
        for log in (daemon_log, self._controller_log):
            errors += [f"{log.name}: {line}" for line in complaints(log)]

    def _audit(self) -> None:
        """While tenants still work: the books say what files, charges and page tables say."""
        deadline = time.monotonic() + _AUDIT_SECONDS  # a tenant moves charges all the while
        while True:
            done = run_sharedctl("audit", self._pool.name)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                break
        self.figures.errors.append(f"audit: {done.stdout}{done.stderr}")

    def _check_limits(self) -> None:
        """The controller has ended: who is still there has the limit that it was given."""
        given = [(running.tenant, _LIMIT_BYTES) for running in self._running if running is not None]
        given += [(running.tenant, HOSTILE_LIMIT_BYTES) for running in self._hostile if running is not None]
        for tenant, limit_bytes in given:
            if tenant.limit() != limit_bytes:
                self.figures.errors.append(f"{tenant.path}: its limit is {tenant.limit()} and should be {limit_bytes}")

    def _keeper_descriptors(self) -> int:
        return len(os.listdir(self._keeper() / "fd"))

    def _keeper(self) -> Path:
        record = registry.record_at(str(self._pool.path))
        assert record is not None
        return Path(f"/proc/{record.keeper_pid}")


def _fingerprint(path: Path) -> list[object]:
    """As a worker tells it."""
    attribute = b""
    with suppress(OSError):
        attribute = os.getxattr(path, XATTR)
    return [hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_nlink, attribute.hex()]
