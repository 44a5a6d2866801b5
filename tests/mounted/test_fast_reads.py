"""`--reads fast`: the kernel serves reads of files opened for reading only, and the open handle is the use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deaths import kill_daemon
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import Tenant, Tenants, wait_until

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "256M", "--reads", "fast", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def reads_served(pool: MountedPool) -> int:
    return pool.status().requests["read"]


def open_to_read(tenant: Tenant, path: Path) -> None:
    tenant.do(f"fd = os.open({str(path)!r}, os.O_RDONLY)")


def test_reads_do_not_reach_us_and_return_the_bytes(pool: MountedPool, tenants: Tenants) -> None:
    data = os.urandom(MIB)
    (pool.path / "file").write_bytes(data)
    reader = tenants.make("reader")
    before = reads_served(pool)
    open_to_read(reader, pool.path / "file")
    reader.do(f"result = os.pread(fd, 16, 0) == {data[:16]!r} and len(os.pread(fd, {2 * MIB}, 0)) == {MIB}")
    assert (pool.path / "file").read_bytes() == data
    assert reads_served(pool) == before
    assert pool.status().data_path == "fast+passthrough"


def test_who_has_a_file_open_uses_all_of_it_until_it_closes(pool: MountedPool, tenants: Tenants) -> None:
    writer, reader = tenants.make("writer"), tenants.make("reader")
    path = pool.path / "file"
    writer.do(f"w = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT); os.write(w, bytes({MIB}))")
    assert pool.used(reader) == 0
    open_to_read(reader, path)
    assert pool.used(reader) == pool.mapped(reader) == MIB
    writer.do(f"os.pwrite(w, bytes({MIB}), {MIB})")
    wait_until(lambda: pool.used(reader) == 2 * MIB, "what became resident since is used, too")
    # Two handles: the first one closed changes nothing.
    reader.do(f"fd2 = os.open({str(path)!r}, os.O_RDONLY); os.close(fd)")
    assert pool.mapped(reader) == 2 * MIB
    reader.do("os.close(fd2)")
    wait_until(lambda: pool.mapped(reader) == 0, "the handle is closed")
    assert pool.used(reader) == 2 * MIB, "which counts as a touch"
    pool.check_conservation()


def test_a_reader_that_exits_uses_nothing(pool: MountedPool, tenants: Tenants) -> None:
    writer, reader = tenants.make("writer"), tenants.make("reader")
    path = pool.path / "file"
    writer.do(f"w = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT); os.write(w, bytes({MIB}))")
    open_to_read(reader, path)
    reader.exit()
    wait_until(lambda: all(len(held.payers) == 1 for held in pool.holdings().classes), "the reader is gone")
    assert pool.used(writer) == MIB
    pool.check_conservation()


def test_other_ways_to_open_stay_exact(pool: MountedPool, tenants: Tenants) -> None:
    (pool.path / "file").write_bytes(bytes(MIB))
    tenant = tenants.make("a")
    tenant.do(f"fd = os.open({str(pool.path / 'file')!r}, os.O_RDWR); os.pread(fd, 1, 0)")
    assert pool.used(tenant) == PAGE


def test_a_file_that_is_read_fast_can_be_mapped_and_written(pool: MountedPool, tenants: Tenants) -> None:
    path = pool.path / "file"
    path.write_bytes(bytes(MIB))
    tenant = tenants.make("a")
    open_to_read(tenant, path)
    tenant.do(
        f"w = os.open({str(path)!r}, os.O_RDWR)\n"
        "mapped = mmap.mmap(w, 0)\n"
        "mapped[5] = 7\n"
        "os.pwrite(w, b'x', 6)\n"
        "result = list(os.pread(fd, 2, 5))"
    )
    assert tenant.do("result = list(os.pread(fd, 2, 5))") == [7, ord("x")]


def test_sendfile_works(pool: MountedPool, tmp_path: Path) -> None:
    """With exact reads it is refused: the kernel's own cache of the file would be charged to the tenant."""
    data = os.urandom(3 * PAGE)
    (pool.path / "file").write_bytes(data)
    source, target = os.open(pool.path / "file", os.O_RDONLY), os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    try:
        assert os.sendfile(target, source, 0, len(data)) == len(data)
    finally:
        os.close(source)
        os.close(target)
    assert (tmp_path / "copy").read_bytes() == data


def test_without_passthrough_reads_are_exact(run_dir: Path, unique_name: str) -> None:
    options = ("--size", "16M", "--reads", "fast", "--no-passthrough", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
        (pool.path / "file").write_bytes(b"x")
        assert (pool.path / "file").read_bytes() == b"x"
        assert reads_served(pool) > 0
        assert pool.status().data_path == "exact"


def test_another_way_is_refused(run_dir: Path) -> None:
    (run_dir / "mnt").mkdir()
    done = sharedfs("mount", str(run_dir / "mnt"), "--reads", "often", check=False)
    assert done.returncode == 2
    assert "exact or fast" in done.stderr


def write_and_go(pool: MountedPool, tenants: Tenants, size: int = MIB) -> Path:
    """A file whose maker lives and has it open no more."""
    path, writer = pool.path / "file", tenants.make("writer")
    writer.do(f"w = os.open({str(path)!r}, os.O_RDWR | os.O_CREAT, 0o666); os.write(w, bytes({size})); os.close(w)")
    return path


def test_who_moves_with_a_file_open_pays_where_it_is(pool: MountedPool, tenants: Tenants) -> None:
    path, opener, goal = write_and_go(pool, tenants), tenants.make("opener"), tenants.make("goal")
    open_to_read(opener, path)
    assert pool.used(goal) == 0, "the control"
    opener.do(f"with open({str(goal.directory / 'cgroup.procs')!r}, 'w') as file: file.write('0')")
    wait_until(lambda: pool.used(goal) == MIB, "it is found where it is", 20)
    wait_until(opener._remove, "the cgroup that it left is removed", 20)
    wait_until(lambda: not pool.knows(opener), "which the pool knows", 20)
    tenants.made[0].exit()
    wait_until(lambda: pool.mapped(goal) == MIB, "it goes on paying", 20)
    assert pool.check_conservation().resident_bytes == pool.used(goal) == MIB
    opener.do("os.close(fd)")
    wait_until(lambda: pool.mapped(goal) == 0, "until it closes it", 20)


def test_who_is_passed_an_open_file_pays_as_well(pool: MountedPool, tenants: Tenants) -> None:
    path, opener, heir = write_and_go(pool, tenants), tenants.make("opener"), tenants.make("receiver")
    fd = os.open(path, os.O_RDONLY)
    try:
        receiver = heir.agent(pass_fds=(fd,))
        writable = tenants.make("only-writes")
        writable.do(f"fd = os.open({str(path)!r}, os.O_RDWR)")
        wait_until(lambda: pool.mapped(heir) == MIB, "it is found by its descriptor", 20)
        assert pool.mapped(opener) == pool.used(writable) == 0, "reads of such a handle come to the daemon"
        receiver.do(f"os.close({fd})")
        wait_until(lambda: pool.mapped(heir) == 0, "until it closes it", 20)
        assert pool.used(heir) == MIB, "which counts as a touch"
    finally:
        os.close(fd)


def test_another_daemon_finds_them_again(pool: MountedPool, tenants: Tenants) -> None:
    path, goal = write_and_go(pool, tenants), tenants.make("goal")
    opener = tenants.make("opener")
    open_to_read(opener, path)
    opener.do(f"with open({str(goal.directory / 'cgroup.procs')!r}, 'w') as file: file.write('0')")
    wait_until(lambda: pool.used(goal) == MIB, "it is found where it is", 20)
    kill_daemon(pool)
    wait_until(lambda: pool.status_or_none() is not None, "another daemon serves", 20)
    assert pool.used(goal) == MIB
    opener.do("os.close(fd)")
    wait_until(lambda: pool.mapped(goal) == 0, "until it closes it", 20)
