"""I2: the kernel charges the pool's cgroup, and never a tenant's. I3: so no zombie stays."""

from contextlib import suppress
from errno import EINVAL, EIO
from pathlib import Path

import pytest

from deploy.demo.host import kernel_release, zombies_stay
from sharedfs.linux.cgroups import CgroupVersion, dying_memcgs
from tests.support.mount import MountedPool
from tests.support.posix import tmpfs
from tests.support.tenants import Tenant, Tenants, wait_until

pytestmark = pytest.mark.alone

PAGE = 4096
MIB = 1 << 20


def test_no_tenant_is_charged_for_shared_pages(pool: MountedPool, tenants: Tenants) -> None:
    writer, reader, mapper, extender = (tenants.make(name) for name in ("writer", "reader", "mapper", "extender"))
    writer.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666)\nfor i in range(16): os.write(fd, b'x' * {MIB})"
    )
    reader.do(f"fd = os.open('{pool.path}/f', os.O_RDONLY)\nwhile os.read(fd, {MIB}): pass")
    mapper.do(
        f"fd = os.open('{pool.path}/f', os.O_RDWR); m = mmap.mmap(fd, {16 * MIB})\n"
        f"result = sum(m[i] for i in range(0, {16 * MIB}, {PAGE}))\n"
        f"for i in range(0, {16 * MIB}, {2 * PAGE}): m[i] = 1"
    )
    extender.do(
        f"fd = os.open('{pool.path}/g', os.O_RDWR | os.O_CREAT, 0o666); os.ftruncate(fd, {8 * MIB})\n"
        f"m = mmap.mmap(fd, {8 * MIB})\nfor i in range(0, {8 * MIB}, {PAGE}): m[i] = 1"
    )
    pool.wait_for_scan()
    assert [tenant.statistic("shmem") for tenant in (writer, reader, mapper, extender)] == [0, 0, 0, 0]
    assert pool.check_conservation().foreign_bytes == 0
    pool_directory = tenants.hierarchy.directory(pool.status().pool_cgroup)
    statistics = dict(line.split() for line in (pool_directory / "memory.stat").read_text().splitlines())
    # Besides its files the pool's tmpfs may hold a page or two of its own.
    assert 24 * MIB <= int(statistics["shmem"]) - pool.state_bytes() < 24 * MIB + 16 * PAGE


def page_cache_of(tenant: Tenant) -> int:
    """File pages that the kernel charges to a tenant, without shared memory."""
    v2 = tenant.hierarchy.version is CgroupVersion.V2
    return tenant.statistic("file" if v2 else "cache") - tenant.statistic("shmem")


@pytest.mark.parametrize("mode", ["O_RDONLY", "O_RDWR"], ids=["done", "refused"])
@pytest.mark.parametrize(
    "call",
    [
        "os.sendfile(writer, fd, 0, 1 << 16)",
        "os.splice(fd, writer, 1 << 16, offset_src=0)",
        "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)",
    ],
)
def test_what_the_kernel_caches_for_a_tenant_goes_while_the_file_stays(
    pool: MountedPool, tenants: Tenants, call: str, mode: str
) -> None:
    """The kernel makes pages before it asks us for their content, and keeps them, empty, when it is refused."""
    tenant = tenants.make("sender")

    def refusals_of(names: range) -> list[int]:
        result = tenant.do(
            "result = []\n"
            f"for number in {names}:\n"
            "    reader, writer = os.pipe()\n"
            f"    fd = os.open(f'{pool.path}/{{number}}', os.{mode})\n"
            f"    try: {call}\n"
            "    except OSError as error: result.append(error.errno)\n"
            "    for one in (fd, reader, writer): os.close(one)"
        )
        assert isinstance(result, list)
        return result

    for number in range(9):
        (pool.path / f"{number}").write_bytes(b"x" * MIB)
    refusals_of(range(8, 9))  # pages of programs and libraries, which this may read from disk, are in `before`
    before = page_cache_of(tenant)
    refusals = refusals_of(range(8))
    advice = "fadvise" in call  # which may be ignored, so that nobody is told of a refusal
    assert refusals == [] if mode == "O_RDONLY" or advice else set(refusals) <= {EINVAL, EIO} and len(refusals) == 8
    wait_until(lambda: page_cache_of(tenant) <= before, "what the kernel cached is freed")


def zombies_left_by(tenants: Tenants, directory: Path, prefix: str, rounds: int) -> int:
    """How many dying cgroups stay when `rounds` tenants come, write 64 KiB to a file of their own, and go.

    On v1 the counter is the whole host's, and others' coming and going is in it. The kernel frees a cgroup a moment
    after its removal, so we wait for that.
    """
    before = dying_memcgs(tenants.hierarchy)
    for number in range(rounds):
        tenant = tenants.make(f"{prefix}-{number}")
        tenant.do(f"open('{directory}/{number}', 'wb').write(b'x' * 65536)")
        tenant.exit()
    with suppress(AssertionError):
        wait_until(lambda: dying_memcgs(tenants.hierarchy) <= before, "all are freed", 3)
    return dying_memcgs(tenants.hierarchy) - before


def test_tenants_come_and_go_without_a_zombie(pool: MountedPool, tenants: Tenants, run_dir: Path) -> None:
    """systemd#36827, moby#29638, lxc#1443, galaxy#6293: zombies in gigabytes, until no cgroup could be made."""
    # v1's counter trembles by a few, so it takes many; v2 is that of tests/guest, which is slow and has no others.
    rounds = 50 if tenants.hierarchy.version is CgroupVersion.V1 else 10
    with tmpfs(run_dir / "tmpfs", "64M") as control:
        zombies_left_by(tenants, control, "first", 1)  # what the first agent loads stays charged to it
        # What others on the host leave, or free, is not repeated by another measurement; what we do is.
        places = [control / "first", control / "second"]
        for place in places:
            place.mkdir()
        breeds = max(zombies_left_by(tenants, place, f"tmpfs-{place.name}", rounds) for place in places)
        if zombies_stay(kernel_release()):
            assert breeds >= rounds - 5, "the control: a zombie for each toucher of tmpfs"
        else:
            assert breeds <= 0
        # One of fifty may be freed after more than three seconds: what a CPU keeps for it goes with the next charge.
        assert any(zombies_left_by(tenants, pool.path, f"pool-{attempt}", rounds) <= 0 for attempt in range(6))
    assert pool.check_conservation().resident_bytes == rounds * 65536
