"""Processes with very many mappings take long to look at: their tenant is seen late, and no other."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sharedfs.linux import procfs
from sharedfs.pages import process_looks
from sharedfs.pages.process_looks import ProcessLooks
from tests.support.mount import MountedPool, mounted_pool
from tests.support.parts import make_books
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
MANY = 20_000
PROCESSES = 8
TURNS = 6
MAP_MANY = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for number in range({MANY}):
    at = libc.mmap(None, {PAGE}, 3, 1, fd, number * 7919 % {MANY} * {PAGE})
    ctypes.c_char.from_address(at).value = b"x"
children = []
for _ in range({PROCESSES} - 1):
    child = os.fork()
    if not child:
        import signal
        signal.pause()
    children.append(child)
result = children
"""


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "256M", "--cgroup-parent", f"{unique_name}-pools", "--idle", "1")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def test_another_tenants_mapping_is_billed_beside_them(pool: MountedPool, tenants: Tenants) -> None:
    hostile, other = tenants.make("hostile"), tenants.make("other")
    with ExitStack() as resources:
        hostile.do(f"fd = os.open('{pool.path}/many', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {MANY * PAGE})")
        children = hostile.do(MAP_MANY)
        assert isinstance(children, list)
        for child in children:
            resources.callback(_kill, child)
        wait_until(lambda: pool.mapped(hostile) == MANY * PAGE, "they are seen themselves", 60)
        other.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {20 * PAGE})")
        other.do(f"m = mmap.mmap(fd, {20 * PAGE}); sum(m[::{PAGE}])")
        wait_until(lambda: pool.mapped(other) == 20 * PAGE, "the other's mapping is billed", 20)
        other.do("m.close()")
        wait_until(lambda: pool.mapped(other) == 0, "and no longer when it is gone", 20)
        assert pool.mapped(hostile) == MANY * PAGE, "who waits for a turn keeps what it maps"
        assert pool.status().unseen == {}
    log = (Path(os.environ["SHAREDFS_RUN_DIR"]) / "pools" / pool.name / "daemon.log").read_text()
    assert "cannot be looked at" not in log
    hostile.exit()


def _kill(process_id: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, 9)


@pytest.fixture
def file(unique_name: str) -> Iterator[Path]:
    path = Path("/dev/shm") / unique_name
    path.write_bytes(bytes(PAGE))
    yield path
    path.unlink()


def mapping_processes(tenant: Tenant, path: Path, count: int) -> list[int]:
    """Processes of a tenant that map a file."""
    agents = [tenant.agent() for _ in range(count)]
    for agent in agents:
        agent.do(f"fd = os.open('{path}', os.O_RDWR); m = mmap.mmap(fd, {PAGE})")
    return sorted(agent.pid for agent in agents)


@pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "control"])
def test_processes_of_a_slow_cgroup_are_looked_at_in_turns_after_the_others(
    bounded: bool, tenants: Tenants, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    children = mapping_processes(tenants.make("slow"), file, 4)
    (last,) = mapping_processes(tenants.make("quick"), file, 1)
    with ExitStack() as resources:
        monkeypatch.setattr(procfs, "process_ids", lambda: iter([*children, last]))
        monkeypatch.setattr("sharedfs.linux.looker._LONG_LOOK_SECONDS", 0.0)
        if bounded:
            monkeypatch.setattr(process_looks, "MOST_OF_A_CGROUP_SECONDS", 0.0)
        device = file.stat().st_dev
        looks = ProcessLooks(make_books(), (os.major(device), os.minor(device)))
        resources.callback(looks.close)
        seen = []
        for _ in range(TURNS):
            sights, unseen = looks.all(pages=True)
            seen.append([sight.process.id for sight, _ in sights])
            assert len(unseen) == len(children) + 1 - len(sights)
            assert all(one.is_late for one in unseen)
            assert looks.shown() == (0, {})
        if not bounded:
            assert all(sorted(found) == sorted([*children, last]) for found in seen)
            return
        assert seen[0] == [children[0], last]
        assert [found[0] for found in seen[1:]] == [last] * (TURNS - 1), "the others come first"
        assert [found[1] for found in seen[1:]] == [*children[1:], *children[:2]], "and the slow ones have turns"
        assert caplog.text.count("/slow take long to look at") == 1
        sights, unseen = looks.all(pages=False)
        assert (len(sights), unseen) == (len(children) + 1, ()), "what is to be moved is looked at whole"
