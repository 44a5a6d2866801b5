"""Each mode that a pool can be mounted in outlives its daemon, killed or reloaded, and its keeper.

A tenant's threads make, write, rename, read, extend and list files all the while, so that requests are in hand at
each death: in the pump, in both slow lanes and with pyfuse3. None sees an error, and the books are exact afterwards.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sharedfs.api.types import PoolStatus
from sharedfs.fuse import protocol as wire
from sharedfs.linux import cachestat, huge_pages
from sharedfs.ops.data import PURE_PYTHON_VARIABLE
from sharedfs.storage import fault_injection
from tests.support.mount import MountedPool, sharedfs, unmount_whatever_happened
from tests.support.service_manager import Manager
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
PATIENCE = 60
NO_RESEND = f"{wire.INIT_HAS_RESEND:x}"
NO_FLAGS2 = f"{0xFFFFFFFF << 32:x}"  # as before Linux 6.9: no passthrough either

WORK = f"""
import time
class Work:
    errors, going, rounds = [], True, dict()
    def run(self, step):
        while self.going:
            try:
                step(self)
            except Exception as error:
                self.errors.append(f"{{step.__name__}}: {{error!r}}")
            self.rounds[step.__name__] = self.rounds.get(step.__name__, 0) + 1
    def rename(self):
        text = str(self.rounds).encode().ljust(100) * 327
        with open(place + '/new', 'wb', 0) as file: file.write(text)
        os.rename(place + '/new', place + '/f')
        with open(place + '/f', 'rb', 0) as file: assert file.read() == text
    def count(self):
        number = self.rounds.get('count', 0)
        assert os.pwrite(kept, number.to_bytes(8, 'little'), 0) == 8
        assert os.pread(kept, 8, 0) == number.to_bytes(8, 'little')
    def reserve(self):
        with open(place + '/long', 'wb', 0) as file:
            os.ftruncate(file.fileno(), {17 * MIB})
            os.posix_fallocate(file.fileno(), 0, {18 * MIB})
            assert os.fstat(file.fileno()).st_size == {18 * MIB}
        os.unlink(place + '/long')
    def ask(self):
        assert os.statvfs(place).f_bsize == {PAGE}
        assert os.listxattr(place) == []
        os.mkdir(place + '/d'); assert 'd' in os.listdir(place); os.rmdir(place + '/d')
work = Work()
steps = Work.rename, Work.count, Work.reserve, Work.ask
threads = [threading.Thread(target=work.run, args=(step,)) for step in steps]
for thread in threads: thread.start()
"""


@dataclass(frozen=True)
class Mode:
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    why_not: Callable[[], str] = lambda: ""
    shows: Callable[[PoolStatus], bool] = lambda _: True


def without_huge_pages() -> str:
    if huge_pages.page_bytes() is None or huge_pages.are_denied() or not cachestat.can_be_asked():
        return "this kernel makes no huge pages that can be asked for"
    return ""


MODES = {
    "as it comes": Mode(),
    "no passthrough": Mode(("--no-passthrough",), shows=lambda status: status.data_path == "exact"),
    "fast reads": Mode(("--reads", "fast")),
    "huge": Mode(("-o", "huge=within_size"), why_not=without_huge_pages),
    "spill": Mode(("--unclaimed", "spill", "--grace", "1", "--spill-dir", "{disk}")),
    "no resend": Mode(environment=((fault_injection.HIDDEN_FEATURES_VARIABLE, NO_RESEND),)),
    "before Linux 6.9": Mode(environment=((fault_injection.HIDDEN_FEATURES_VARIABLE, NO_FLAGS2),)),
    "Python": Mode(environment=((PURE_PYTHON_VARIABLE, "1"),), shows=lambda status: status.engine == "Python"),
    "Python, before Linux 6.9": Mode(
        environment=((PURE_PYTHON_VARIABLE, "1"), (fault_injection.HIDDEN_FEATURES_VARIABLE, NO_FLAGS2))
    ),
}


@contextmanager
def managed(
    mode: Mode, run_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Manager, MountedPool]]:
    if mode.why_not():
        pytest.skip(mode.why_not())
    for variable, value in mode.environment:
        monkeypatch.setenv(variable, value)
    place, disk = run_dir / "mnt", run_dir / "disk"
    place.mkdir()
    disk.mkdir()
    options = [option.format(disk=disk) for option in mode.options]
    made = Manager(MountedPool(place, name), "--size", "256M", "--cgroup-parent", f"{name}-pools", *options)
    with ExitStack() as resources:
        resources.callback(unmount_whatever_happened, place)
        resources.callback(made.stop)
        resources.callback(lambda: sharedfs("umount", str(place), check=False))
        made.start()
        yield made, made.pool


def is_another(pool: MountedPool, before: PoolStatus) -> bool:
    now = pool.status_or_none()
    return now is not None and now.daemon_pid != before.daemon_pid


def kill(manager: Manager) -> None:
    before = manager.pool.status()
    os.kill(before.daemon_pid, signal.SIGKILL)
    wait_until(lambda: is_another(manager.pool, before), "another daemon serves", PATIENCE)


def reload(manager: Manager) -> None:
    before = manager.pool.status()
    sharedfs("reload", str(manager.pool.path))
    assert is_another(manager.pool, before)


def resume(manager: Manager) -> None:
    os.kill(manager.process_id, signal.SIGKILL)
    assert manager.wait() == -signal.SIGKILL
    manager.start()


def works_on(worker: Tenant) -> None:
    """Each of its threads goes on, and none of them has seen an error."""

    def rounds() -> dict[str, int]:
        return dict(worker.do("result = dict(work.rounds)"))  # type: ignore[call-overload, no-any-return]

    before = rounds()
    wait_until(
        lambda: len(rounds()) == 4 and all(now > before.get(step, 0) + 1 for step, now in rounds().items()),
        "the tenant works on",
        PATIENCE,
    )
    assert worker.do("result = len(work.errors), sorted(set(work.errors))") == [0, []]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_mode_survives_kill_reload_and_resume(
    mode: Mode, run_dir: Path, unique_name: str, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    with managed(mode, run_dir, unique_name, monkeypatch) as (manager, pool):
        worker, leaver = tenants.make("worker"), tenants.make("leaver")
        leaver.do(f"with open('{pool.path}/left', 'wb') as file: file.write(b'left' * {PAGE})")
        leaver.exit()
        if "spill" in mode.options:
            wait_until(lambda: pool.status().spilled_files == 1, "the file is on disk", PATIENCE)
        worker.do(f"place = '{pool.path}'; kept = os.open(place + '/kept', os.O_RDWR | os.O_CREAT)")
        worker.do(f"os.pwrite(kept, b'x' * {PAGE}, {PAGE})\n{WORK}")
        try:
            assert mode.shows(pool.status())
            works_on(worker)
            for act in (kill, reload, resume, kill):
                act(manager)
                works_on(worker)
        finally:
            worker.do("work.going = False\nfor thread in threads: thread.join()")
        assert worker.do("result = work.errors") == []
        assert worker.do(f"result = os.pread(kept, 2, {PAGE}).decode()") == "xx"
        assert mode.shows(pool.status())
        assert (pool.path / "left").read_bytes() == b"left" * PAGE
        pool.check_conservation()
        worker.do("os.close(kept)")
    assert not (run_dir / "disk" / unique_name).exists()


@pytest.mark.parametrize("hidden", ["", NO_FLAGS2])
def test_a_pool_that_is_read_only_survives(
    hidden: str, run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = Mode(environment=((fault_injection.HIDDEN_FEATURES_VARIABLE, hidden or "0"),))
    with managed(mode, run_dir, unique_name, monkeypatch) as (manager, pool):
        (pool.path / "f").write_bytes(b"x" * PAGE)
        sharedfs("mount", str(pool.path), "-o", "remount,ro")
        for act in (kill, reload, resume):
            act(manager)
            assert (pool.path / "f").read_bytes() == b"x" * PAGE
            with pytest.raises(OSError, match="Read-only"):
                (pool.path / "g").touch()
        pool.check_conservation()
