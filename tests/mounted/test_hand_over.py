"""Hand-over that is slow, fails or is asked for again: no request fails for it, and `reload` tells what happened.

Daemons die or stop where a fault is armed (`sharedfs/storage/fault_injection.py`): when they have taken over and before
they serve.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharedfs.fuse.protocol import IN_HEADER, Opcode
from sharedfs.ops.recovery import MOST_DEATHS
from sharedfs.pool.schema import StateFile
from sharedfs.storage import fault_injection
from sharedfs.storage.fault_injection import Point, Start, armed_word, start_word
from sharedfs.storage.journal import Journal
from sharedfs.storage.state_files import StateFiles
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import wait_until

PATIENCE = 60


class Handed:
    """A pool and its faults."""

    def __init__(self, pool: MountedPool) -> None:
        self.pool = pool
        self.keeper = pool.status().keeper_pid
        self.file = pool.kept(StateFile.FAULTS) / StateFile.FAULTS

    def arm(self, opcode: int, point: Point) -> None:
        with self.file.open("r+b") as file:
            file.write(armed_word(opcode, point).to_bytes(8, "little"))

    def arm_starts(self, act: Start, daemons: int) -> None:
        with self.file.open("r+b") as file:
            file.seek(8)
            file.write(start_word(act, daemons).to_bytes(8, "little"))

    def starts_left(self) -> int:
        with self.file.open("rb") as file:
            file.seek(8)
            return int.from_bytes(file.read(8), "little") & 0xFF

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.keeper}/task/{self.keeper}/children")
        return [int(word) for word in tasks.read_text().split()]

    def stopped_daemon(self) -> int:
        def stopped() -> int | None:
            return next((child for child in self.children() if state_of(child) == "T"), None)

        return wait_until(stopped, "a daemon has stopped itself", PATIENCE)


def state_of(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@pytest.fixture
def handed(run_dir: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Handed]:
    monkeypatch.setenv(fault_injection.VARIABLE, "1")
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
        yield Handed(pool)
        pool.check_conservation()


@contextmanager
def asked(act: Callable[[], object]) -> Iterator[Callable[[], object]]:
    """Do something that waits for a daemon, beside; gives what waits for its outcome."""
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(act).result


def test_daemons_that_die_before_they_read_say_nothing_about_a_request(handed: Handed) -> None:
    """It was in hand when the first one died. Counted as its deaths, it failed with EIO."""
    place = handed.pool.path / "d"
    handed.arm_starts(Start.DIE, MOST_DEATHS + 1)
    handed.arm(Opcode.MKDIR, Point.TAKEN)
    place.mkdir()
    assert handed.starts_left() == 0, "they have died"
    assert place.is_dir()


def test_a_daemon_that_stops_as_it_takes_over_is_waited_for(handed: Handed) -> None:
    path = handed.pool.path / "f"
    path.write_bytes(b"before")
    before = handed.pool.status()
    handed.arm_starts(Start.STOP, 1)
    with asked(lambda: sharedfs("reload", str(handed.pool.path))) as reloaded:
        daemon = handed.stopped_daemon()
        with asked(path.read_bytes) as read, asked(lambda: os.mkdir(handed.pool.path / "d")) as made:
            os.kill(before.keeper_pid, signal.SIGHUP)  # one more, meanwhile
            os.kill(daemon, signal.SIGCONT)
            assert read() == b"before"
            made()
        reloaded()
    wait_until(lambda: reloads(handed) == 2, "the second reload came, too", PATIENCE)
    status = handed.pool.status()
    assert (status.keeper_pid, status.restarts) == (before.keeper_pid, 2)


def reloads(handed: Handed) -> int | None:
    status = handed.pool.status_or_none()
    return None if status is None else status.reloads


def test_a_daemon_killed_while_it_is_stopped_loses_nothing(handed: Handed) -> None:
    handed.arm_starts(Start.STOP, 2)
    handed.arm(Opcode.MKDIR, Point.COMMITTED)
    with asked(lambda: os.mkdir(handed.pool.path / "d")) as made:
        first = handed.stopped_daemon()
        os.kill(first, signal.SIGKILL)
        second = handed.stopped_daemon()
        assert second != first
        os.kill(second, signal.SIGCONT)
        made()
    assert (handed.pool.path / "d").is_dir()


def test_more_reloads_than_deaths_are_allowed_fail_no_request(handed: Handed) -> None:
    """A tenant works while the installed version takes over again and again."""
    errors: list[BaseException] = []
    rounds, end = [0], threading.Event()

    def work() -> None:
        path = handed.pool.path / "f"
        while not end.is_set():
            try:
                path.write_bytes(b"%d" % rounds[0])
                assert path.read_bytes() == b"%d" % rounds[0]
            except (OSError, AssertionError) as error:
                errors.append(error)
            rounds[0] += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for turn in range(3):
            sharedfs("reload", str(handed.pool.path))
            assert reloads(handed) == turn + 1
    finally:
        end.set()
        worker.join()
    assert errors == []


def test_a_spare_that_is_stopped_does_not_keep_the_keeper(handed: Handed) -> None:
    spare = next(child for child in handed.children() if child != handed.pool.status().daemon_pid)
    os.kill(spare, signal.SIGSTOP)
    sharedfs("reload", str(handed.pool.path))
    assert reloads(handed) == 1
    wait_until(lambda: state_of(spare) == "Z", "the stopped one is gone", PATIENCE)


def test_reload_says_that_the_pool_is_lost(handed: Handed, run_dir: Path) -> None:
    """The control: so many daemons die in a row that the keeper gives up."""
    place = run_dir / "other"
    with mounted_pool(place, f"{handed.pool.name}-other", "--size", "16M", "--cgroup-parent", "") as pool:
        other = Handed(pool)
        other.arm_starts(Start.DIE, 200)
        refused = sharedfs("reload", str(place), check=False)
        assert refused.returncode == 1
        assert "has ended and its files are lost" in refused.stderr
        assert "goes on" not in refused.stderr


def test_reload_of_what_does_not_start_says_which_daemon_goes_on(
    handed: Handed,
) -> None:
    before = handed.pool.status()
    reload = (
        f"from sharedfs.mount import mounting; mounting._RELOAD_SECONDS = 3; mounting.reload({str(handed.pool.path)!r})"
    )
    os.kill(before.keeper_pid, signal.SIGSTOP)  # it does nothing in that time
    try:
        done = subprocess.run([sys.executable, "-c", reload], capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.kill(before.keeper_pid, signal.SIGCONT)
    assert f"daemon {before.daemon_pid} goes on" in done.stderr


def test_a_death_counts_against_what_the_daemon_had_begun_with() -> None:
    journal = Journal(StateFiles())
    assert journal.under_way() == (0, 0)
    journal.request[: IN_HEADER.size] = IN_HEADER.pack(40, Opcode.MKDIR, 78, 1, 0, 0, 0, 0, 0)
    assert journal.under_way() == (Opcode.MKDIR, 78)
    journal.answers_put_off(42)
    assert journal.under_way() == (0, 42), "it was read earlier and is answered now"
    journal.answers_put_off(0)
    journal.forget_request()
    assert journal.under_way() == (0, 0)
