"""Processes of our own are stopped and go on; nobody is left standing."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharedfs.kernel.stopping import CannotStop, Stopper
from tests.support.tenants import wait_until

BUSY = """
import os, threading
def spin():
    while True: pass
for _ in range(3): threading.Thread(target=spin, daemon=True).start()
print(flush=True)
while True:
    if os.fork() == 0: os._exit(0)
    os.wait()
"""
PATIENCE = 20.0


@pytest.fixture
def busy() -> Iterator[int]:
    """A process whose threads work and that makes a child after the other."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.poll() is None, "it went on to the end"
        process.kill()


def in_a_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread that then ends; what it raises is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def states(process: int) -> set[str]:
    found = (Path(f"/proc/{process}/task/{thread}/stat") for thread in os.listdir(f"/proc/{process}/task"))
    return {stat.read_text().rpartition(") ")[2][0] for stat in found}


def cpu_time(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def goes_on(process: int) -> None:
    before = cpu_time(process)
    wait_until(lambda: cpu_time(process) > before, "the process works", PATIENCE)


def test_all_threads_stop_and_go_on(busy: int) -> None:
    def stop_and_release() -> None:
        for _ in range(10):
            stopper = Stopper(time.monotonic() + PATIENCE)
            try:
                stopper.stop([busy])
                before = cpu_time(busy)
                assert states(busy) == {"t"}
                assert cpu_time(busy) == before
            finally:
                stopper.release()

    in_a_thread(stop_and_release)
    goes_on(busy)


def test_the_end_of_the_thread_that_stopped_them_lets_them_go(busy: int) -> None:
    in_a_thread(lambda: Stopper(time.monotonic() + PATIENCE).stop([busy]))
    goes_on(busy)


def test_who_is_traced_already_cannot_be_stopped_and_works_on(busy: int) -> None:
    first = Stopper(time.monotonic() + PATIENCE)
    first.stop([busy])
    try:
        with pytest.raises(CannotStop, match="traced already"):
            in_a_thread(lambda: Stopper(time.monotonic() + PATIENCE).stop([busy]))
        assert states(busy) == {"t"}
    finally:
        first.release()
    goes_on(busy)


def test_a_process_that_has_ended_is_no_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    in_a_thread(lambda: Stopper(time.monotonic() + PATIENCE).stop([process.pid]))
