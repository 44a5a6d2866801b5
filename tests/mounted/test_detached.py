"""Pages that are in no file any more, for somebody holds them: they are counted, take room, and have a payer."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sharedfs.linux.cgroup_memory import batch_bytes
from tests.support.controller import bills, running_controller, sharedctl
from tests.support.mount import MountedPool
from tests.support.pins import UNMAP, Pin, hold_in_pipes, move_agent
from tests.support.tenants import AgentError, Tenant, Tenants, wait_until

MIB = 1 << 20
PAGE = 4096
PATIENCE = 20.0
LARGE = 48 * MIB


def write(tenant: Tenant, path: Path, size: int) -> None:
    tenant.do(f"fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, b'x' * {size}, 0)")


LET_GO = "for end in pipes: os.close(end[0]); os.close(end[1])"


def detached_of(pool: MountedPool, tenant: Tenant | None) -> int:
    holdings = pool.holdings()
    ids = {0} if tenant is None else {ref.id for ref in holdings.tenants if ref.path == tenant.path}
    return sum(part.bytes for part in holdings.detached if part.tenant in ids)


def about(size: int) -> range:
    return range(size - 2 * batch_bytes(), size + 2 * batch_bytes())


@pytest.mark.parametrize("removed", [False, True])
def test_pages_in_pipes_have_a_payer_until_they_are_read(pool: MountedPool, tenants: Tenants, removed: bool) -> None:
    """Who had them last pays, not who made the file."""
    path, owner, holder = pool.path / "f", tenants.make("owner"), tenants.make("holder")
    write(owner, path, LARGE)
    hold_in_pipes(holder, path, LARGE)
    wait_until(lambda: pool.used(holder) == LARGE, "who holds them maps them", PATIENCE)
    holder.do(UNMAP)
    path.unlink() if removed else os.truncate(path, 0)
    owner.do("os.close(fd)")
    wait_until(lambda: pool.holdings().detached_bytes in about(LARGE), "they are in no file", PATIENCE)
    assert pool.check_conservation().resident_bytes == 0
    assert detached_of(pool, holder) + detached_of(pool, owner) == pool.holdings().detached_bytes
    assert detached_of(pool, holder) >= LARGE // 2 - 2 * batch_bytes()
    holder.do(LET_GO)
    wait_until(lambda: pool.holdings().detached_bytes == 0, "and no more when nobody holds them", PATIENCE)


def test_they_take_room_in_the_pool(pool: MountedPool, tenants: Tenants) -> None:
    """Whoever writes then gets ENOSPC: the pool is never charged for much more than its size."""
    holder = tenants.make("holder")
    path = pool.path / "f"
    for _ in range(3):
        write(holder, path, LARGE)
        hold_in_pipes(holder, path, LARGE)
        holder.do(f"{UNMAP}; os.ftruncate(fd, 0); all = globals().setdefault('all', []) + pipes")
    left = 256 * MIB - 3 * LARGE
    wait_until(lambda: pool.holdings().detached_bytes in about(3 * LARGE), "they are in no file", PATIENCE)
    wait_until(lambda: os.statvfs(pool.path).f_blocks * PAGE in about(left), "the pool is as much smaller", PATIENCE)
    assert pool.status().bounded_by == "pages that are in no file"
    with pytest.raises(AgentError) as refused:
        holder.do(
            f"os.pwrite(fd, b'x' * {left + 8 * MIB}, 0); os.fsync(fd)\nos.posix_fallocate(fd, 0, {left + 8 * MIB})"
        )
    assert refused.value.errno == errno.ENOSPC
    holder.end_processes()
    wait_until(lambda: os.statvfs(pool.path).f_blocks * PAGE == 256 * MIB, "the room is back", PATIENCE)


def test_they_are_nobodys_when_the_payer_goes(pool: MountedPool, tenants: Tenants) -> None:
    holder, other = tenants.make("holder"), tenants.make("other")
    path = pool.path / "f"
    write(holder, path, LARGE)
    Pin(agent := holder.agent(), path, LARGE)
    holder.do("os.ftruncate(fd, 0)")
    wait_until(lambda: detached_of(pool, holder) in about(LARGE), "who holds them pays", PATIENCE)
    move_agent(agent, holder, other)
    holder.exit()
    wait_until(lambda: detached_of(pool, None) in about(LARGE), "they are unclaimed", PATIENCE)
    assert pool.holdings().detached_bytes in about(LARGE)


def test_they_are_on_the_bill_and_explained(pool: MountedPool, tenants: Tenants) -> None:
    """They come off the limit of who holds them, as the rest of its share does."""
    holder = tenants.make("holder", limit_bytes=256 * MIB)
    path = pool.path / "f"
    with running_controller():
        write(holder, path, LARGE)
        hold_in_pipes(holder, path, LARGE)
        holder.do(f"{UNMAP}; os.ftruncate(fd, 0)")

        def billed() -> dict[str, Any] | None:
            told = bills()
            line = next((line for line in told["tenants"] if line["tenant"] == holder.path), None)
            return line if line is not None and line["detached_bytes"] in about(LARGE) else None

        line = wait_until(billed, "they are on the bill", PATIENCE)
        assert line["share_bytes"] == line["detached_bytes"]
        wait_until(lambda: (holder.limit() or 0) in about(256 * MIB - LARGE), "its limit is lower", PATIENCE)
        explained = sharedctl("explain", holder.path)
        assert [(file["path"], file["share_bytes"]) for file in explained["files"]] == [
            ("(in no file any more)", explained["share_bytes"])
        ]
        assert explained["share_bytes"] in about(LARGE)
        holder.do(LET_GO)
        wait_until(lambda: holder.limit() == 256 * MIB, "and back", PATIENCE)
