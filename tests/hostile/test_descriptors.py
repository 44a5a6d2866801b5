"""A daemon that has no descriptor left, or a few, serves on: no request and no task that comes again ends it.

The limit of the running daemon is lowered to what it has open, and to a few more, so that each of the places where a
descriptor is wanted is the one that finds none.
"""

import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE
from itertools import count, islice
from pathlib import Path

import pytest
import trio

from sharedfs.accounting.persistence import BooksState
from sharedfs.common import paths
from sharedfs.common.errors import first_error
from sharedfs.fuse.shortage import Shortage
from sharedfs.maintenance import tasks
from tests.support.kills import run_in_child
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Tenants, wait_until

MOST_SPARE = 20
PUT_OFF = "looking for mappings is put off"
# By eight processes that the daemon has not seen before, at once: it looks up who they are, and serves in turns. What
# finds no descriptor after all caches were closed fails with ENFILE.
EVERYTHING = """
import mmap, os, sys, threading
from errno import ENFILE

def act(place):
    def each(*steps):
        for step in steps:
            try:
                step()
            except FileNotFoundError:
                pass
            except OSError as error:
                assert error.errno == ENFILE, error
    def write():
        with open(f"{place}/f", "wb", buffering=0) as file:
            file.write(bytes(1 << 16))
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
            os.ftruncate(file.fileno(), 3 << 20)
            os.ftruncate(file.fileno(), 10)
    def read():
        with open(f"{place}/f", "rb", buffering=0) as file:
            file.read(10)
            os.lseek(file.fileno(), 0, os.SEEK_HOLE)
            mmap.mmap(file.fileno(), 10, prot=mmap.PROT_READ)[0]
    def copy():
        with open(f"{place}/f", "rb", buffering=0) as file, open(f"{place}/g", "wb", buffering=0) as other:
            os.copy_file_range(file.fileno(), other.fileno(), 10)
    def attributes():
        os.setxattr(f"{place}/f", "user.x", b"1")
        os.getxattr(f"{place}/f", "user.x")
        os.listxattr(f"{place}/f")
        os.removexattr(f"{place}/f", "user.x")
        os.chmod(f"{place}/f", 0o600)
        os.utime(f"{place}/f")
    def names():
        os.symlink("x", f"{place}/s"); os.readlink(f"{place}/s"); os.unlink(f"{place}/s")
        os.link(f"{place}/f", f"{place}/h"); os.rename(f"{place}/h", f"{place}/g"); os.unlink(f"{place}/g")
        os.mkfifo(f"{place}/p"); os.unlink(f"{place}/p")
        os.close(os.open(place, os.O_TMPFILE | os.O_RDWR))
    each(lambda: os.mkdir(place), write, read, copy, attributes, names)
    each(lambda: os.listdir(place), lambda: os.statvfs(place))
    each(*(lambda name=name: os.unlink(f"{place}/{name}") for name in "fgshp"), lambda: os.rmdir(place))

children = []
for number in range(8):
    child = os.fork()
    if not child:
        act(f"{sys.argv[1]}/{sys.argv[2]}-{number}")
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@contextmanager
def spare_descriptors(process_id: int, spare: int) -> Iterator[None]:
    """The process can open just so many more."""
    before = resource.prlimit(process_id, resource.RLIMIT_NOFILE)
    in_use = {int(name) for name in os.listdir(f"/proc/{process_id}/fd")}
    limit = next(islice((number for number in count() if number not in in_use), spare, None))
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it is what the test is about
            resource.prlimit(process_id, resource.RLIMIT_NOFILE, before)


@pytest.fixture
def aging_pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools", "-o", "idle=1")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def test_every_request_and_task_bears_that_no_descriptor_is_left(aging_pool: MountedPool, tenants: Tenants) -> None:
    pool, tenant = aging_pool, tenants.make("a")
    tenant.do(f"fd = os.open('{pool.path}/mapped', os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes(1 << 16), 0)")
    tenant.do("m = mmap.mmap(fd, 1 << 16); m[:] = bytes(1 << 16)")
    status, log = pool.status(), paths.daemon_log(pool.name)
    for spare in range(MOST_SPARE + 1):
        before = log.read_text().count(PUT_OFF)
        with spare_descriptors(status.daemon_pid, spare):
            done = subprocess.run(
                [sys.executable, "-c", EVERYTHING, str(pool.path), str(spare)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (spare, done.stderr)
            if spare == 0:
                wait_until(lambda before=before: log.read_text().count(PUT_OFF) > before + 1, "a scan was put off", 20)
        for left in pool.path.glob("*-*"):
            shutil.rmtree(left)
    after = pool.status()
    assert (after.daemon_pid, after.restarts) == (status.daemon_pid, status.restarts), log.read_text()
    assert os.listdir(pool.path) == ["mapped"]
    pool.wait_for_scan()
    assert pool.mapped(tenant) == 1 << 16
    pool.check_conservation()


def test_a_log_is_written_anew_without_a_descriptor(tmp_path: Path) -> None:
    """It is when ids were freed: a daemon that goes on without it would have ids in its books that its log denies."""
    gc.collect()  # books of earlier tests: User-Mode Linux has addresses for a few
    directory_fd = os.open(tmp_path, os.O_RDONLY)

    def rewrite() -> None:
        state = BooksState(directory_fd)
        state.tenants.append(("one",))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for number in range(3):
            for _ in state.tenants.rewriting([("all", number)]):
                pass
            state.tenants.append(("more", number))

    try:
        assert run_in_child(rewrite) == 0
        state = BooksState(directory_fd)
        assert state.tenants.records() == [["all", 2], ["more", 2]]
        state.close()
    finally:
        os.close(directory_fd)


@pytest.mark.parametrize("errno", [EMFILE, ENFILE])
def test_a_task_whose_nursery_wraps_the_error_is_put_off_all_the_same(errno: int) -> None:
    """A look at mappings has a watcher beside it: its errors come as a group, which used to end the daemon."""
    turns = []

    async def work() -> None:
        turns.append(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            raise OSError(errno, os.strerror(errno))

    async def main() -> None:
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tasks._keep, "it", work, lambda _: 0.0)
                while len(turns) < 3:
                    await trio.sleep(0)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert len(turns) >= 3


def test_a_task_that_fails_for_another_reason_ends_the_daemon() -> None:
    async def work() -> None:
        raise OSError(5, "x")

    with pytest.raises(ExceptionGroup) as broken:
        trio.run(tasks._keep, "it", work, lambda _: 0.0)
    assert str(first_error(broken.value)) == "[Errno 5] x"


def test_requests_of_somebody_who_cannot_be_looked_up_wait_their_turn() -> None:
    """More wait than one, so that the daemon asks who they are: without a descriptor it used to end there."""
    asked: list[int] = []
    rooms: list[int] = []

    def party_of(_: int) -> int:
        asked.append(1)
        raise OSError(EMFILE, os.strerror(EMFILE))

    assert Shortage(make_room=lambda: rooms.append(1)).party(party_of, 7) is None
    assert (len(asked), len(rooms)) == (2, 1), "asked once more after room was made"
