"""Containers with limits of their own on one pool. A test of a pain that people reported names the report."""

import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.containers import RUNTIMES
from tests.containers.containers import LIMIT, AgentError, Host, Running, host_below
from tests.support.controller import bill_of, bills, running_controller
from tests.support.mount import MountedPool, mounted_pool, unmount
from tests.support.posix import tmpfs
from tests.support.tenants import Tenants, wait_until

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def host(request: pytest.FixtureRequest, tenants: Tenants) -> Iterator[Host]:
    """Containers of each runtime in turn, or of the first one where it does not matter which."""
    runtime = getattr(request, "param", RUNTIMES[0])
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    with host_below(runtime, tenants) as made:
        yield made


@pytest.fixture(scope="module")
def controller(shared_pool: MountedPool) -> Iterator[None]:
    with running_controller():
        yield


def each_of(*runtimes: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("host", runtimes, indirect=True)


every_runtime = each_of(*RUNTIMES, "bwrap")
every_oci_runtime = each_of(*RUNTIMES)


def write(container: Running, file: Path, size: int = SIZE, mode: str = "wb") -> None:
    container.do(f"f = open('{file}', '{mode}', 0)\nfor i in range({size // MIB}): f.write(b'x' * {MIB})\nf.close()")


def read(container: Running, file: Path) -> None:
    container.do(f"f = open('{file}', 'rb', 0)\nwhile f.read({MIB}): pass\nf.close()")


def shared_memory_charged(container: Running, tenants: Tenants) -> int:
    return container.statistic("total_shmem" if tenants.hierarchy.version == 1 else "shmem")


def assert_pays(container: Running, share: int) -> None:
    """The container's bill is `share`, and the kernel enforces what that leaves of its limit."""
    wait_until(lambda: container.limit() == LIMIT - share, f"the limit of {container.path} is {LIMIT - share}", 30)
    bill = bill_of(container.path, bills())
    assert (bill["share_bytes"], bill["budget_bytes"], bill["debt_bytes"]) == (share, LIMIT, 0)


@every_runtime
def test_a_cache_that_containers_share_is_billed_to_all_who_use_it(
    host: Host, tenants: Tenants, shared_pool: MountedPool, controller: None
) -> None:
    """kubernetes#75378, fluid#3528, v6d#1340: the writer paid for all, or nobody did, and readers rode free."""
    file = shared_pool.path / f"cache-{host.runtime}"
    a, b = (host.start(name, [shared_pool.path]) for name in "ab")
    write(a, file)
    assert_pays(a, SIZE)
    read(b, file)
    assert_pays(a, SIZE // 2)
    assert_pays(b, SIZE // 2)
    wait_until(lambda: bill_of(a.path, bills())["name"] == a.name, "the runtime tells its name", 30)
    b.do(f"fd = os.open('{file}', os.O_RDWR)\nm = mmap.mmap(fd, {SIZE})\nfor i in range(0, {SIZE}, 4096): m[i] = 1")
    assert [shared_memory_charged(container, tenants) for container in (a, b)] == [0, 0]
    a.end()
    assert_pays(b, SIZE)
    b.end()
    wait_until(lambda: bills()["unclaimed_bytes"] == SIZE, "nobody uses it", 30)
    file.unlink()
    shared_pool.check_conservation()


@every_oci_runtime
@pytest.mark.parametrize(
    ("options", "owner"), [({"user": 1000}, 1000), ({"user_namespace": True}, 100_000)], ids=["user", "user namespace"]
)
def test_whoever_one_is_inside(host: Host, shared_pool: MountedPool, options: dict[str, object], owner: int) -> None:
    """libfuse#67: a caller in namespaces of its own is known all the same, and so is who owns the file."""
    file = shared_pool.path / f"inside-{host.runtime}-{owner}"
    container = host.start("inside", [shared_pool.path], **options)
    write(container, file)
    holdings = shared_pool.holdings()
    (tenant,) = (ref for ref in holdings.tenants if ref.path == container.path)
    assert sum(held.bytes for held in holdings.classes if held.payers == (tenant.id,)) == SIZE
    assert file.stat().st_uid == owner
    assert container.do(f"result = os.stat('{file}').st_uid == os.getuid()") is True
    container.end()
    file.unlink()


@every_oci_runtime
def test_a_container_restarted_on_a_full_pool_starts_again(host: Host, run_dir: Path, unique_name: str) -> None:
    """kubernetes#128339: one that died on a full memory volume died again at each restart: its memory was full.

    KEP-6030: who writes past the volume is told ENOSPC, and not killed.
    """
    run_dir.chmod(0o755)
    with mounted_pool(run_dir / "mnt", unique_name, "--size", "16M", "--cgroup-parent", f"{unique_name}-pools") as pool:
        for start in range(3):
            container = host.start("restarted", [pool.path])
            with pytest.raises(AgentError) as failure:
                write(container, pool.path / "log", 32 * MIB, "ab")
            assert failure.value.errno == errno.ENOSPC
            assert container.oom_kills() == 0
            assert container.limit() == LIMIT
            pool.check_conservation()
            if start == 2:  # what a person would do who looks inside
                container.do(f"f.close(); os.unlink('{pool.path}/log')")
                wait_until(lambda: pool.resident_by_statfs() == 0, "the kernel has let go of it")
                write(container, pool.path / "log", MIB)
            container.end()


@each_of("runc", "crun")
def test_who_writes_more_than_its_limit_is_not_killed_for_it(host: Host, run_dir: Path, unique_name: str) -> None:
    """KEP-6030, moby#40727: a memory volume larger than the limit turned a full disk into a kill.

    The control is the same on tmpfs.
    """
    run_dir.chmod(0o755)
    limit = 64 * MIB
    with tmpfs(run_dir / "tmpfs", "128M") as volume:
        killed = host.start("killed", [volume], limit_bytes=limit)
        killed.do_without_swap()
        with pytest.raises(AssertionError, match="the agent ended"):
            write(killed, volume / "f", 100 * MIB)
    with mounted_pool(
        run_dir / "mnt", unique_name, "--size", "128M", "--cgroup-parent", f"{unique_name}-pools"
    ) as pool:
        container = host.start("spared", [pool.path], limit_bytes=limit)
        write(container, pool.path / "f", 100 * MIB)
        assert container.oom_kills() == 0
        assert pool.check_conservation().resident_bytes == 100 * MIB
        container.end()


@each_of("runc", "podman")
def test_what_a_job_left_behind_is_on_somebodys_bill(
    host: Host, tenants: Tenants, shared_pool: MountedPool, controller: None
) -> None:
    """buildbuddy#12934, website#36453, benchexec#286: a former job's files counted for a parent, or for nobody."""
    file = shared_pool.path / f"left-{host.runtime}"
    job = host.start("first", [shared_pool.path])
    write(job, file)
    job.end()
    wait_until(lambda: bills()["unclaimed_bytes"] == SIZE, "the pool's own account has it", 30)
    parent = tenants.hierarchy.directory(tenants.path) / "memory.stat"
    line = "total_shmem" if tenants.hierarchy.version == 1 else "shmem"
    assert dict(entry.split() for entry in parent.read_text().splitlines())[line] == "0"
    successor = host.start("second", [shared_pool.path])
    read(successor, file)
    assert_pays(successor, SIZE)
    successor.end()
    file.unlink()


@each_of("runc", "podman")
def test_running_a_container_again_does_not_launder_what_it_wrote(
    host: Host, tenants: Tenants, shared_pool: MountedPool, controller: None
) -> None:
    """moby#39004: each run could write its limit anew, and what former runs wrote counted for nobody."""
    files = [shared_pool.path / f"run-{host.runtime}-{number}" for number in range(3)]
    for number, file in enumerate(files):
        container = host.start("again", [shared_pool.path])
        write(container, file)
        for former in files[:number]:
            read(container, former)
        assert_pays(container, SIZE * (number + 1))
        container.end()
        wait_until(lambda: bills()["unclaimed_bytes"] == SIZE * (number + 1), "it is the pool's", 30)  # noqa: B023
    for file in files:
        file.unlink()


@every_oci_runtime
def test_a_pool_mounted_after_the_container_started(host: Host, run_dir: Path, unique_name: str) -> None:
    """mountpoint-s3-csi-driver#576: who was there before the filesystem did not see it, and was restarted for that."""
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory:
        shared = Path(directory)
        shared.chmod(0o755)
        subprocess.run(["mount", "--bind", shared, shared], check=True)
        try:
            subprocess.run(["mount", "--make-shared", shared], check=True)
            container = host.start("early", [], slave=[shared])
            options = ("--size", "16M", "--cgroup-parent", f"{unique_name}-pools")
            with mounted_pool(shared / "late", unique_name, *options) as pool:
                write(container, pool.path / "f", MIB)
                assert pool.check_conservation().resident_bytes == MIB
                assert container.path in {tenant.path for tenant in pool.holdings().tenants}
                unmount(str(pool.path))
            assert container.do(f"result = os.listdir('{shared}/late')") == []
            container.end()
        finally:
            subprocess.run(["umount", "-l", shared], check=True)
