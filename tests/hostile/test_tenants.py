"""Tenants that do too much, too fast or the unexpected: the right one pays, to the byte; the daemon is as before."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.hostile.pid_namespace import LAST_PROCESS_ID, in_pid_namespace, next_process_id
from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import opened
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
MIB = 1 << 20
# What caches may still take on after a storm has been through once: descriptors, and bytes of memory.
DESCRIPTORS, MEMORY = 130, 6 * MIB


def last_errors(directory: Path) -> list[object]:
    """What a filesystem says at its limits: errno, or a length."""
    answers: list[object] = []

    def note(action: Callable[[], object]) -> None:
        try:
            answer = action()
        except OSError as error:
            answers.append(os.strerror(error.errno or 0))
        else:
            answers.append(answer if isinstance(answer, int) else len(answer) if isinstance(answer, bytes) else None)

    for length in (255, 256, 1024, 4095):
        name = str(directory / ("n" * length))
        note(lambda name=name: os.close(os.open(name, os.O_CREAT | os.O_RDWR)))
        note(lambda name=name: os.mkdir(name + "d"))
        note(lambda length=length: os.symlink("t" * length, directory / f"link{length}"))
        note(lambda length=length: os.readlink(os.fsencode(directory / f"link{length}")))
    note(lambda: os.close(os.open(bytes(directory) + b"/\xff\x01\n", os.O_CREAT | os.O_RDWR)))
    with opened(directory / "file", os.O_RDWR | os.O_CREAT) as fd:
        for offset in (1 << 31, 1 << 32, (1 << 63) - 2, (1 << 63) - PAGE - 1):
            note(lambda offset=offset: os.pwrite(fd, b"xy", offset))
            note(lambda offset=offset: os.pread(fd, 2, offset))
            note(lambda offset=offset: os.ftruncate(fd, offset))
            note(lambda offset=offset: os.lseek(fd, offset, os.SEEK_DATA))
        note(lambda: os.posix_fallocate(fd, (1 << 63) - PAGE, PAGE - 1))
        note(lambda: os.posix_fallocate(fd, 0, (1 << 63) - 1))
        note(lambda: os.ftruncate(fd, 0))
        for size in (0, 1, 65536, 65537):
            note(lambda size=size: os.setxattr(fd, "user.x", bytes(size)))
            note(lambda: os.getxattr(fd, "user.x"))
        for length in (249, 250, 251, 300):  # with "user.": 255 is the longest
            note(lambda length=length: os.setxattr(fd, "user." + "x" * length, b"v"))
        note(lambda: os.setxattr(fd, "nobody.knows", b"v"))
        note(lambda: os.setxattr(fd, "user.", b"v"))
    return answers


def test_at_every_limit_it_says_what_tmpfs_says(shared_pool: MountedPool, plain_tmpfs: Path) -> None:
    here, there = shared_pool.path / "limits", plain_tmpfs / "limits"
    for directory in (here, there):
        directory.mkdir()
    assert last_errors(here) == last_errors(there)
    shared_pool.check_conservation()


def grown_by(pool: MountedPool, storm: Callable[[], None]) -> tuple[int, int]:
    """Descriptors and resident bytes that the daemon has more of after a second storm than after the first."""
    daemon = psutil.Process(pool.status().daemon_pid)
    sizes = []
    for _ in range(2):
        storm()
        pool.wait_for_scan()
        sizes.append((daemon.num_fds(), daemon.memory_info().rss))
    return sizes[1][0] - sizes[0][0], sizes[1][1] - sizes[0][1]


STORMS = {
    "opens": """
for turn in range(3):
    fds = [os.open(f'{path}/file', os.O_RDWR | os.O_CREAT) for _ in range(700)]
    for fd in fds:
        os.close(fd)
""",
    "tiny files": """
for number in range(600):
    fd = os.open(f'{path}/tiny{number}', os.O_RDWR | os.O_CREAT)
    os.write(fd, b'x')
    os.close(fd)
for number in range(600):
    os.unlink(f'{path}/tiny{number}')
""",
    "readers that live briefly": """
fd = os.open(f'{path}/read', os.O_RDWR | os.O_CREAT)
os.pwrite(fd, bytes(4096 * 200), 0)
for wave in range(25):
    children = []
    for number in range(8):
        child = os.fork()
        if not child:
            os.pread(fd, 100, 4096 * (wave * 8 + number))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
os.close(fd)
os.unlink(f'{path}/read')
""",
    "mappings that no scan sees": """
for number in range(100):
    child = os.fork()
    if not child:
        fd = os.open(f'{path}/mapped', os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4096 * 64)
        os.pwrite(fd, b'x', 4096 * 200)
        m = mmap.mmap(fd, 4096 * 200)
        m[4096 * (64 + number)] = 1
        os._exit(0)
    os.waitpid(child, 0)
os.unlink(f'{path}/mapped')
""",
    "listings left open": """
import ctypes
libc = ctypes.CDLL(None)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
listings = [libc.opendir(path.encode()) for _ in range(600)]
for listing in listings:
    libc.readdir(listing)
for listing in listings:
    libc.closedir(listing)
""",
}


@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_leaves_the_daemon_as_it_was(shared_pool: MountedPool, tenants: Tenants, storm: str) -> None:
    """The same storm again takes no more descriptors and no more memory than the first one did."""
    tenant, path = tenants.make("a"), shared_pool.path / storm.replace(" ", "-")
    path.mkdir()
    tenant.do(f"path = {str(path)!r}")
    descriptors, memory = grown_by(shared_pool, lambda: tenant.do(STORMS[storm]) and None)
    assert descriptors <= DESCRIPTORS
    assert memory <= MEMORY
    shared_pool.check_conservation()


def test_a_process_pays_where_it_is_when_it_reads(shared_pool: MountedPool, tenants: Tenants) -> None:
    """It moves between two cgroups as fast as it can be moved, and reads another page each time."""
    writer, *homes = (tenants.make(name) for name in ("writer", "left", "right"))
    file, pages = shared_pool.path / "moved", 120
    writer.do(f"fd = os.open({str(file)!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({pages * PAGE}), 0)")
    walker = homes[0].agent()
    walker.do(f"fd = os.open({str(file)!r}, os.O_RDONLY)")
    expected = [0, 0]
    for page in range(pages):
        home = random.Random(page).randrange(2)
        (homes[home].directory / "cgroup.procs").write_text(str(walker.pid))
        walker.do(f"os.pread(fd, 10, {page * PAGE})")
        expected[home] += PAGE
    assert [shared_pool.used(home) for home in homes] == expected
    walker.end()
    shared_pool.check_conservation()


def test_tenants_that_come_and_go_leave_nothing_in_the_books(shared_pool: MountedPool, tenants: Tenants) -> None:
    """Two rounds of tenants, each with a page of its own and one that all use."""
    first_bytes, prefix = None, f"{tenants.path}/t"
    for turn in range(2):
        for number in range(15):
            tenant = tenants.make(f"t{turn}-{number}")
            tenant.do(
                f"fd = os.open({str(shared_pool.path / 'all')!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x', 0)"
            )
            tenant.do(f"os.close(os.open({str(shared_pool.path / f'own{number}')!r}, os.O_CREAT)); os.close(fd)")
            tenant.exit()
        wait_until(
            lambda: not any(ref.path.startswith(prefix) for ref in shared_pool.holdings().tenants),
            "all exits are noticed",
        )
        if first_bytes is None:
            first_bytes = shared_pool.status().ledger_bytes
    wait_until(
        lambda: shared_pool.status().ledger_bytes <= (first_bytes or 0) + 1024, "the books are as small again", 30
    )


def test_renames_in_circles_lose_nothing(shared_pool: MountedPool, tenants: Tenants) -> None:
    """Three tenants move the same files around the same directories, onto each other's names, all at once."""
    path = shared_pool.path / "circle"
    for directory in range(5):
        (path / f"d{directory}").mkdir(parents=True)
        (path / f"d{directory}" / "f").write_text(str(directory))
    circle = f"""
import ctypes, random
libc, rng = ctypes.CDLL(None), random.Random(SEED)
for turn in range(250):
    a, b = (f'{path}/d{{rng.randrange(5)}}/f'.encode() for _ in range(2))
    libc.renameat2(-100, a, -100, b, rng.choice([1, 2, 2]))
    if turn % 10 == 0:
        os.rename({str(path)!r} + '/d0', {str(path)!r} + '/e'); os.rename({str(path)!r} + '/e', {str(path)!r} + '/d0')
"""
    agents = [tenants.make(f"t{number}").agent() for number in range(3)]
    for number, agent in enumerate(agents):
        assert agent.process.stdin is not None
        statements = circle.replace("SEED", str(number))
        if number:  # one of them moves a directory, under the feet of all
            statements = statements.replace("turn % 10 == 0", "False")
        agent.process.stdin.write(json.dumps(statements) + "\n")
        agent.process.stdin.flush()
    for agent in agents:
        assert agent.process.stdout is not None
        assert agent.process.stdout.readline() == '{"result": null}\n'
    found = sorted(file.read_text() for file in path.glob("d*/f"))
    assert found == ["0", "1", "2", "3", "4"]
    shared_pool.check_conservation()


@pytest.mark.skipif(not LAST_PROCESS_ID.exists(), reason="this kernel gives process ids out in turn only")
def test_a_process_id_that_is_used_again_is_another_tenants(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    """In a process tree of their own, a process of b gets the id that one of a had just now, again and again."""
    a, b = tenants.make("a"), tenants.make("b")
    turns = 8

    def reuse() -> tuple[int, int, int]:
        same = 0
        options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools")
        with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
            with opened(pool.path / "f", os.O_RDWR | os.O_CREAT) as fd:
                os.pwrite(fd, bytes(2 * turns * PAGE), 0)
            for turn in range(turns):
                ids = []
                for number, tenant in enumerate((a, b)):
                    if ids:
                        next_process_id(ids[0])
                    agent = tenant.agent()
                    agent.do(
                        f"os.pread(os.open({str(pool.path / 'f')!r}, os.O_RDONLY), 9, {(2 * turn + number) * PAGE})"
                    )
                    ids.append(agent.pid)
                    agent.end()
                same += ids[0] == ids[1]
            return same, pool.used(a), pool.used(b)

    same, used_by_a, used_by_b = in_pid_namespace(reuse)
    assert same >= turns // 2, "other processes may have been faster at times"
    assert (used_by_a, used_by_b) == (turns * PAGE, turns * PAGE)
