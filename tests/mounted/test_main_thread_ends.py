"""A process whose main thread has ended (pthread_exit) goes on, and /proc/PID shows nothing of it.

Each test first shows that: it is the control, for whoever reads /proc/PID alone finds no mapping and no open file.
"""

import os
from pathlib import Path

import pytest

from controller.zombies.files import find_shared_files
from sharedfs.linux.cgroups import CgroupVersion
from tests.support.holes import sparse
from tests.support.kills import is_zombie
from tests.support.mount import MountedPool, sharedfs
from tests.support.tenants import Agent, Tenants, wait_until

PAGE = 4096
PATIENCE = 20.0


def wait_for_end_of_main_thread(agent: Agent) -> None:
    wait_until(lambda: is_zombie(agent.pid), "the main thread has ended", PATIENCE)
    assert Path(f"/proc/{agent.pid}/maps").read_bytes() == b"", "the control: no mapping is seen there"


def map_file(agent: Agent, path: Path, pages: int) -> None:
    agent.do(f"fd = os.open('{path}', os.O_RDWR); m = mmap.mmap(fd, {pages * PAGE}); os.close(fd)")
    agent.do(f"result = sum(m[page * {PAGE}] for page in range({pages}))")


def test_what_it_maps_is_billed_as_long_as_it_lasts(pool: MountedPool, tenants: Tenants) -> None:
    maker, mapper = tenants.make("maker"), tenants.make("mapper")
    maker.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {50 * PAGE}, 0)")
    agent = mapper.agent(main_thread_ends=True)
    wait_for_end_of_main_thread(agent)
    map_file(agent, pool.path / "f", 50)
    wait_until(lambda: pool.mapped(mapper) == 50 * PAGE, "every page that it read is mapped", PATIENCE)
    pool.wait_for_scan()
    assert pool.mapped(mapper) == 50 * PAGE
    agent.do("m.close()")
    wait_until(lambda: pool.mapped(mapper) == 0, "unmapping is seen", PATIENCE)
    pool.check_conservation()


def test_a_hole_that_it_faults_is_foreign_and_its_own(pool: MountedPool, tenants: Tenants) -> None:
    tenant = tenants.make("tenant")
    agent = tenant.agent(main_thread_ends=True)
    wait_for_end_of_main_thread(agent)
    agent.do(sparse(pool.path / "f", 101 * PAGE))
    agent.do(f"m = mmap.mmap(fd, {100 * PAGE}); m[{7 * PAGE}] = 1")
    wait_until(lambda: pool.holdings().foreign_bytes == PAGE, "the page is foreign", PATIENCE)
    assert pool.mapped(tenant) == PAGE


def test_threads_in_two_cgroups(pool: MountedPool, tenants: Tenants) -> None:
    """A mapping is the main thread's tenant's while that lives, and then the tenant's of the oldest thread."""
    if tenants.hierarchy.version is CgroupVersion.V2:
        pytest.skip("on v2 all threads of a process are in one cgroup with memory")
    leader, thread = tenants.make("leader"), tenants.make("thread")
    with (pool.path / "f").open("wb") as file:
        file.write(bytes(20 * PAGE))
    agent = leader.agent()
    map_file(agent, pool.path / "f", 20)
    agent.do(
        "import time\n"
        "ends = threading.Event()\n"
        "def work():\n"
        f"    open('{thread.directory}/tasks', 'w').write(str(threading.get_native_id()))\n"
        "    ends.wait()\n"
        "    while m: time.sleep(0.01)\n"
        "other = threading.Thread(target=work, daemon=True); other.start()"
    )
    wait_until((thread.directory / "tasks").read_text, "the thread has moved", PATIENCE)
    pool.wait_for_scan()
    assert (pool.mapped(leader), pool.mapped(thread)) == (20 * PAGE, 0)
    assert agent.process.stdin is not None
    agent.process.stdin.write('"ends.set(); ctypes.CDLL(None).pthread_exit(None)"\n')
    agent.process.stdin.flush()
    try:
        wait_for_end_of_main_thread(agent)
        wait_until(lambda: pool.mapped(thread) == 20 * PAGE, "the mapping is the thread's tenant's", PATIENCE)
        wait_until(lambda: pool.mapped(leader) == 0, "and no longer the main thread's", PATIENCE)
    finally:
        agent.process.kill()


def test_it_is_named_when_it_keeps_the_mount_from_going(pool: MountedPool, tenants: Tenants) -> None:
    agent = tenants.make("tenant").agent(main_thread_ends=True)
    wait_for_end_of_main_thread(agent)
    agent.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666)")
    refused = sharedfs("umount", str(pool.path), check=False)
    assert refused.returncode == 2
    assert f"pid {agent.pid}" in refused.stderr


def test_memory_that_it_alone_holds_is_found(tenants: Tenants) -> None:
    """What `sharedctl zombies` looks through: a memfd, held and mapped."""
    agent = tenants.make("tenant").agent(main_thread_ends=True)
    wait_for_end_of_main_thread(agent)
    agent.do(f"fd = os.memfd_create('held'); os.ftruncate(fd, {PAGE}); m = mmap.mmap(fd, {PAGE})")
    inode = agent.do("result = os.fstat(fd).st_ino")
    files = find_shared_files().files
    [found] = [file for (_, number), file in files.items() if number == inode and agent.pid in file.users]
    assert found.users == {agent.pid: {"maps", "holds"}}
    assert all(os.stat(path).st_ino == inode for path in found.opened_by)
    assert found.opened_by
