"""Names and inodes: they take room of the pool's size, and who made them pays for those beyond what comes with it."""

import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy
from sharedfs.storage.inode_cost import INODE_BYTES, included
from tests.support.controller import bills, running_controller, sharedctl
from tests.support.deaths import kill_daemon
from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import fails
from tests.support.tenants import Tenant, Tenants, wait_until

MIB = 1 << 20
SIZE = 16 * MIB
FREE = included(SIZE)
PATIENCE = 20.0
MAKERS = {
    "files": "os.close(os.open(name, os.O_CREAT | os.O_RDWR))",
    "directories": "os.mkdir(name)",
    "symlinks": "os.symlink('x', name)",
    "fifos": "os.mkfifo(name)",
    # Each rename leaves an inode in place of the name: renameat2(2) with RENAME_WHITEOUT.
    "whiteouts": (
        "import ctypes\n"
        "made or os.close(os.open(name, os.O_CREAT | os.O_RDWR))\n"
        "after, libc = f'{place}/{number + 1}', ctypes.CDLL(None, use_errno=True)\n"
        "if libc.renameat2(-100, name.encode(), -100, after.encode(), 4):\n"
        "    raise OSError(ctypes.get_errno(), 'renameat2')"
    ),
}


@pytest.fixture
def small(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    with mounted_pool(run_dir / "mnt", unique_name, "--size", str(SIZE), "--cgroup-parent", f"{unique_name}-p") as pool:
        yield pool


def make(tenant: Tenant, pool: MountedPool, count: int, kind: str = "files", place: str = "") -> int:
    """How many of `count` there are: until one is refused for want of space."""
    return int(
        tenant.do(
            f"import errno\nplace = '{pool.path}/{place or tenant.path.rpartition('/')[2]}'; os.makedirs(place)\n"
            f"made = 0\n"
            f"for number in range({count}):\n"
            f"    name = f'{{place}}/{{number}}'\n"
            f"    try:\n{indent(MAKERS[kind], ' ' * 8)}\n"
            f"    except OSError as error:\n"
            f"        assert error.errno == errno.ENOSPC, error\n"
            f"        break\n"
            f"    made += 1\n"
            f"result = made"
        )
    )


def inodes_of(pool: MountedPool, tenant: Tenant | None) -> int:
    holdings = pool.holdings()
    ids = {0} if tenant is None else {ref.id for ref in holdings.tenants if ref.path == tenant.path}
    return sum(part.bytes for part in holdings.inodes if part.tenant in ids)


def kernel_bytes(hierarchy: MemoryHierarchy, pool: MountedPool) -> int:
    directory = hierarchy.directory(pool.status().pool_cgroup)
    if hierarchy.version is CgroupVersion.V1:
        return int((directory / "memory.kmem.usage_in_bytes").read_text())
    lines = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return int(lines["kernel"])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_flood_of_names_ends_within_the_size(small: MountedPool, tenants: Tenants, kind: str) -> None:
    """Of each kind, to ENOSPC; the control is tmpfs, which lets in half as many as the host has pages."""
    flooder, most = tenants.make("flooder"), FREE + SIZE // INODE_BYTES
    before = kernel_bytes(tenants.hierarchy, small)
    made = make(flooder, small, 2 * most, kind)
    assert most - 64 <= made <= most
    assert kernel_bytes(tenants.hierarchy, small) - before <= 1.2 * SIZE
    shown = os.statvfs(small.path)
    assert (shown.f_ffree, shown.f_files >= made) == (0, True)
    assert small.status().inode_bytes in range((made - FREE) * INODE_BYTES, (made - FREE + 8) * INODE_BYTES)
    assert small.status().bounded_by == "names and inodes"
    with fails(ENOSPC):
        (small.path / "data").write_bytes(b"x" * MIB)
    flooder.do("import shutil; shutil.rmtree(place)")
    wait_until(lambda: small.holdings().inode_bytes == 0, "nothing is left of them", PATIENCE)
    (small.path / "data").write_bytes(b"x" * (SIZE - MIB))
    assert os.statvfs(small.path).f_ffree >= FREE - 8


def test_the_cost_is_as_measured(small: MountedPool, tenants: Tenants) -> None:
    maker, count = tenants.make("maker"), 5000
    before = kernel_bytes(tenants.hierarchy, small)
    assert make(maker, small, count) == count
    grown = kernel_bytes(tenants.hierarchy, small) - before
    assert INODE_BYTES * 0.5 <= grown / count <= INODE_BYTES, "a third of it is the daemon's own"


def test_a_full_pool_takes_the_names_that_come_with_its_size(small: MountedPool, tenants: Tenants) -> None:
    maker = tenants.make("maker")
    with fails(ENOSPC):
        (small.path / "data").write_bytes(b"x" * 2 * SIZE)
    assert FREE - 8 <= make(maker, small, 2 * FREE) <= FREE


def test_a_nameless_file_gets_its_name_in_a_full_pool(small: MountedPool, tenants: Tenants) -> None:
    """It was counted when it was made."""
    maker = tenants.make("maker")
    maker.do(f"fd = os.open('{small.path}', os.O_TMPFILE | os.O_RDWR)")
    assert make(tenants.make("flooder"), small, 2 * SIZE // INODE_BYTES) > FREE
    maker.do(f"os.link(f'/proc/self/fd/{{fd}}', '{small.path}/named', src_dir_fd=fd, follow_symlinks=True)")
    assert (small.path / "named").exists()


def test_each_maker_pays_also_after_the_daemons_death(small: MountedPool, tenants: Tenants) -> None:
    """Beyond an even part of what comes with the size; what an exited one made is nobody's, with what never was."""
    one, other = tenants.make("one"), tenants.make("other")
    assert make(one, small, 3000) == 3000
    assert make(other, small, 1000) == 1000
    total = small.holdings().inode_bytes
    assert total in range((4000 - FREE) * INODE_BYTES, (4008 - FREE) * INODE_BYTES)
    parts = inodes_of(small, one), inodes_of(small, other), inodes_of(small, None)
    assert sum(parts) == total
    even = (FREE - 1) // 2
    assert parts[0] == pytest.approx((3001 - even) * INODE_BYTES, rel=0.01)
    assert parts[1] == pytest.approx((1001 - even) * INODE_BYTES, rel=0.01)
    kill_daemon(small)
    wait_until(lambda: small.status_or_none() is not None, "another daemon serves", PATIENCE)
    assert (inodes_of(small, one), inodes_of(small, other), inodes_of(small, None)) == parts
    one.exit()
    wait_until(lambda: inodes_of(small, None) >= parts[0], "the names of the one that exited are nobody's", PATIENCE)
    assert inodes_of(small, other) == pytest.approx(parts[1], abs=4 * INODE_BYTES)
    assert small.holdings().inode_bytes == total


def test_they_are_on_the_bill_and_explained(small: MountedPool, tenants: Tenants) -> None:
    maker = tenants.make("maker", limit_bytes=64 * MIB)
    with running_controller():
        assert make(maker, small, 4000) == 4000
        expected = range((3990 - FREE) * INODE_BYTES, (4008 - FREE) * INODE_BYTES)

        def billed() -> dict[str, Any] | None:
            line = next((line for line in bills()["tenants"] if line["tenant"] == maker.path), None)
            return line if line is not None and line["inode_bytes"] in expected else None

        line = wait_until(billed, "they are on the bill", PATIENCE)
        assert line["share_bytes"] == line["inode_bytes"]
        wait_until(lambda: (maker.limit() or 0) < 64 * MIB - 4 * MIB, "its limit is lower", PATIENCE)
        explained = sharedctl("explain", maker.path)
        assert [file["path"] for file in explained["files"]] == ["(names and inodes)"]
        assert [held["inodes"] for held in explained["classes"]] == [True]
