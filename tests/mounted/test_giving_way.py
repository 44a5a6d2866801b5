"""`--unclaimed yield`: unclaimed files go, the oldest first, before anybody gets ENOSPC; both engines."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from errno import ENOSPC
from pathlib import Path

import pytest

from sharedfs.ops.data import PURE_PYTHON_VARIABLE
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.parts import skip_without_shortcut
from tests.support.posix import fails
from tests.support.tenants import Tenants, wait_until

MIB = 1 << 20
SIZE = 32 * MIB
OLD_BYTES = 4 * MIB
PATIENCE = 30.0

Mount = Callable[..., AbstractContextManager[MountedPool]]


@pytest.fixture(params=["C", "Python"])
def mount(
    request: pytest.FixtureRequest,
    run_dir: Path,
    unique_name: str,
    tenants: Tenants,
    monkeypatch: pytest.MonkeyPatch,
) -> Mount:
    if request.param == "Python":
        monkeypatch.setenv(PURE_PYTHON_VARIABLE, "1")
    else:
        skip_without_shortcut()

    @contextmanager
    def mounted(rule: str = "yield", *options: str) -> Iterator[MountedPool]:
        common = ("--size", str(SIZE), "--cgroup-parent", f"{unique_name}-pools", "--unclaimed", rule)
        with mounted_pool(run_dir / "mnt", unique_name, *common, *options) as pool:
            assert pool.status().engine == request.param
            try:
                yield pool
            finally:  # who has a file open keeps the daemon from ending
                for tenant in tenants.made:
                    tenant.end_processes()

    return mounted


def leave_files(pool: MountedPool, tenants: Tenants, numbers: range) -> None:
    """Tenants write a file each and exit, one after the other, so that the first is the oldest."""
    for number in numbers:
        leaver = tenants.make(f"leaver-{number}")
        leaver.do(f"with open('{pool.path}/old{number}', 'wb') as file: file.write(b'x' * {OLD_BYTES})")
        leaver.exit()
        wait_until(lambda leaver=leaver: not pool.knows(leaver), "the exit is seen", PATIENCE)


def old_files(pool: MountedPool) -> list[int]:
    return sorted(int(name.removeprefix("old")) for name in os.listdir(pool.path) if name.startswith("old"))


def fill_with_old(pool: MountedPool, tenants: Tenants) -> None:
    leave_files(pool, tenants, range(SIZE // OLD_BYTES))
    assert pool.holdings().resident_bytes == SIZE
    assert os.statvfs(pool.path).f_bfree == 0


def test_a_write_into_a_full_pool_takes_the_oldest_files(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        fill_with_old(pool, tenants)
        writer = tenants.make("writer")
        writer.do(
            f"fd = os.open('{pool.path}/new', os.O_RDWR | os.O_CREAT)\n"
            f"for at in range(5): assert os.pwrite(fd, bytes([at]) * {MIB}, at * {MIB}) == {MIB}"
        )
        assert old_files(pool) == list(range(2, 8)), "as many as it takes, the longest unclaimed first"
        assert pool.status().deleted_files == 2
        content = (pool.path / "new").read_bytes()
        assert content == b"".join(bytes([at]) * MIB for at in range(5))
        assert (pool.path / "old2").read_bytes() == b"x" * OLD_BYTES
        pool.check_conservation()


def test_the_control_without_the_rule_it_is_enospc(mount: Mount, tenants: Tenants) -> None:
    with mount("keep") as pool:
        fill_with_old(pool, tenants)
        with fails(ENOSPC), (pool.path / "new").open("wb", buffering=0) as file:
            file.write(b"x" * MIB)
        assert old_files(pool) == list(range(8))
        sharedfs("mount", str(pool.path), "-o", "remount,unclaimed=yield")
        (pool.path / "new").write_bytes(b"x" * MIB)
        assert old_files(pool) == list(range(1, 8))


WAYS = {
    "fallocate": f"os.posix_fallocate(fd, 0, {3 * MIB})",
    "long fallocate": f"os.posix_fallocate(fd, 0, {20 * MIB})",
    "ftruncate": f"os.ftruncate(fd, {3 * MIB})",
    "long ftruncate": f"os.ftruncate(fd, {20 * MIB})",
    "copy": f"source = os.open(path + '.source', os.O_RDWR); result = os.copy_file_range(source, fd, {MIB})",
    "symlink": "os.symlink('x' * 2000, path + '.link')",
    "write": f"result = os.write(fd, b'x' * {MIB})",
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_needs_space_gets_it(mount: Mount, tenants: Tenants, way: str) -> None:
    with mount() as pool:
        (pool.path / "f.source").write_bytes(b"s" * MIB)
        leave_files(pool, tenants, range((SIZE - MIB) // OLD_BYTES))
        filler = tenants.make("filler")
        left = SIZE - pool.holdings().resident_bytes
        filler.do(f"fd = os.open('{pool.path}/mine', os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, {left})")
        assert os.statvfs(pool.path).f_bfree == 0
        user = tenants.make("user")
        user.do(f"path = '{pool.path}/f'; fd = os.open(path, os.O_RDWR | os.O_CREAT)\n{WAYS[way]}")
        taken = 5 if "long" in way else 1
        assert old_files(pool) == list(range(taken, 7))
        assert (pool.path / "f.source").read_bytes() == b"s" * MIB
        if "fallocate" in way or "truncate" in way:
            assert (pool.path / "f").stat().st_blocks * 512 == (20 if "long" in way else 3) * MIB
        pool.check_conservation()


def test_open_and_mapped_files_stay_and_then_it_is_enospc(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        fill_with_old(pool, tenants)
        holder = tenants.make("holder")
        holder.do(
            f"fd = os.open('{pool.path}/old0', os.O_RDONLY)\n"
            f"other = os.open('{pool.path}/old1', os.O_RDONLY)\n"
            "m = mmap.mmap(other, 0, prot=mmap.PROT_READ); os.close(other)"
        )
        os.link(pool.path / "old2", pool.path / "second")
        with (pool.path / "big").open("wb", buffering=0) as file:
            written = 0
            with fails(ENOSPC):
                while written < 2 * SIZE:
                    written += file.write(b"x" * MIB)
            assert written == SIZE - 3 * OLD_BYTES
            assert old_files(pool) == [0, 1, 2]
        assert holder.do("result = (os.pread(fd, 1, 0) + m[:1]).decode()") == "xx"
        pool.check_conservation()


def test_a_request_that_could_never_fit_takes_nothing(mount: Mount, tenants: Tenants) -> None:
    """Else one call would be enough to delete everything that is unclaimed."""
    with mount() as pool:
        fill_with_old(pool, tenants)
        with (pool.path / "f").open("wb") as file, fails(ENOSPC):
            os.posix_fallocate(file.fileno(), 0, SIZE + MIB)
        assert old_files(pool) == list(range(8))
        with (pool.path / "f").open("wb") as file, fails(ENOSPC):
            os.posix_fallocate(file.fileno(), 0, 1 << 50)
        assert old_files(pool) == list(range(8))


def test_several_writers_at_once_lose_nothing(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        fill_with_old(pool, tenants)
        made = [tenants.make(f"writer-{number}") for number in range(4)]
        for number, writer in enumerate(made):
            writer.do(
                "import subprocess, sys\n"
                f"child = subprocess.Popen([sys.executable, '-c', '''import os\n"
                f"for file in range(6):\n"
                f'    fd = os.open(f"{pool.path}/new{number}-{{file}}", os.O_RDWR | os.O_CREAT)\n'
                f"    assert os.write(fd, bytes([{number} + 1]) * {MIB}) == {MIB}\n"
                "    os.close(fd)\n'''])"
            )
        for writer in made:
            assert writer.do("result = child.wait()") == 0
        for number in range(4):
            for file in range(6):
                assert (pool.path / f"new{number}-{file}").read_bytes() == bytes([number + 1]) * MIB
        left = old_files(pool)
        assert left == list(range(8 - len(left), 8))
        assert 1 <= len(left) <= 2
        pool.check_conservation()


def test_a_name_that_gave_way_is_gone_for_who_knew_it(mount: Mount, tenants: Tenants) -> None:
    """The kernel remembers names: who opens one that has just gone finds nothing, and not a file without content."""
    with mount() as pool:
        fill_with_old(pool, tenants)
        knower = tenants.make("knower")
        knower.do(f"path = '{pool.path}/old0'; result = os.stat(path).st_size")
        (pool.path / "new").write_bytes(b"x" * MIB)
        told = knower.do("try: os.open(path, os.O_RDONLY)\nexcept OSError as error: result = error.errno")
        assert told == 2
        knower.do("fd = os.open(path, os.O_RDWR | os.O_CREAT); os.write(fd, b'anew')")
        assert (pool.path / "old0").read_bytes() == b"anew"


def test_killed_while_files_give_way_each_write_counts_once(mount: Mount, tenants: Tenants) -> None:
    with mount() as pool:
        fill_with_old(pool, tenants)
        writer = tenants.make("writer")
        writer.do(
            "import subprocess, sys\n"
            f"child = subprocess.Popen([sys.executable, '-c', '''import os\n"
            f"for number in range(28):\n"
            f'    fd = os.open(f"{pool.path}/new{{number}}", os.O_RDWR | os.O_CREAT | os.O_EXCL)\n'
            f"    assert os.write(fd, bytes([number + 1]) * {MIB}) == {MIB}\n"
            "    os.close(fd)\n'''])"
        )
        for _ in range(3):
            before = pool.status_or_none()
            if before is not None:
                os.kill(before.daemon_pid, signal.SIGKILL)
                wait_until(
                    lambda pid=before.daemon_pid: (now := pool.status_or_none()) is not None and now.daemon_pid != pid,
                    "another daemon serves",
                    PATIENCE,
                )
        assert writer.do("result = child.wait()") == 0
        for number in range(28):
            assert (pool.path / f"new{number}").read_bytes() == bytes([number + 1]) * MIB
        assert len(old_files(pool)) <= 1
        pool.check_conservation()
