"""A container with cgroups inside is one tenant: its processes' touches, its mappings, its life and its limit."""

import os
from pathlib import Path

from tests.support.controller import running_controller
from tests.support.mount import MountedPool, mounted_pool, sharedfs
from tests.support.tenants import Tenants, wait_until

MIB = 1 << 20
CONTAINER = "docker-" + "c3" * 32 + ".scope"
POD_UID = "0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9"


def test_a_container_with_cgroups_inside_is_one_tenant(pool: MountedPool, tenants: Tenants) -> None:
    container = tenants.make(CONTAINER)
    writer, mapper = tenants.make(f"{CONTAINER}/writer"), tenants.make(f"{CONTAINER}/system.slice")
    writer.do(f"open('{pool.path}/written', 'wb').write(b'x' * {MIB})")
    mapper.do(
        f"fd = os.open('{pool.path}/mapped', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {MIB})\n"
        f"m = mmap.mmap(fd, {MIB})\nfor i in range(0, {MIB}, 4096): m[i] = 1"
    )
    pool.wait_for_scan()
    assert [tenant.path for tenant in pool.holdings().tenants] == [container.path]
    assert pool.used(container) == 2 * MIB
    assert pool.mapped(container) == MIB

    mapper.exit()
    wait_until(lambda: pool.mapped(container) == 0, "the mapping is gone")
    assert pool.used(container) == 2 * MIB, "a cgroup inside came and went, and the container is still there"
    writer.exit()
    pool.wait_for_scan()
    assert pool.used(container) == 2 * MIB
    container.exit()
    wait_until(lambda: not pool.holdings().tenants, "the tenant is gone with the container")
    pool.check_conservation()


def test_rules_of_ones_own(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    options = ("--size", "16M", "--cgroup-parent", f"{unique_name}-pools", "--tenant", f"{tenants.path}/job-*:leaf")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
        sharedfs("mount", str(pool.path), "-o", f"remount,tenant={tenants.path}/job-*:leaf")  # as it is: no change
        job = tenants.make("job-1")
        step = tenants.make("job-1/step")
        tenants.make(CONTAINER)
        inside = tenants.make(f"{CONTAINER}/inside")
        for tenant in (step, inside):
            tenant.do(f"open('{pool.path}/{os.path.basename(tenant.path)}', 'wb').write(b'x')")
        assert {tenant.path for tenant in pool.holdings().tenants} == {job.path, inside.path}
        assert f"tenant={tenants.path}/job-*:leaf" in pool.status().settings
        refused = sharedfs("mount", str(pool.path), "-o", "remount,tenant=leaf", check=False)
        assert refused.returncode == 2
        assert "tenant cannot change" in refused.stderr


def test_a_pod_pays_for_what_its_containers_share(run_dir: Path, unique_name: str, tenants: Tenants) -> None:
    """kubernetes#63641: what a container puts into shared memory is to be charged to its pod, as a whole."""
    options = ("--size", "16M", "--cgroup-parent", f"{unique_name}-pools", "--tenant", "pod:container")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool, running_controller():
        name = f"kubepods-burstable-pod{POD_UID}.slice"
        pod = tenants.make(name, 64 * MIB)
        tenants.hierarchy.enable_memory(f"{pod.path}/container")
        first, second = (tenants.make(f"{name}/cri-containerd-{digit * 64}.scope", 48 * MIB) for digit in "ab")
        first.do(f"open('{pool.path}/f', 'wb').write(b'x' * {4 * MIB})")
        second.do(f"open('{pool.path}/f', 'rb').read()")
        wait_until(lambda: pod.limit() == 60 * MIB, "the pod's limit has fallen", 20)
        assert {tenant.path for tenant in pool.holdings().tenants} == {pod.path}
        assert [container.limit() for container in (first, second)] == [48 * MIB] * 2
        first.exit()
        pool.wait_for_scan()
        assert pool.used(pod) == 4 * MIB


def test_a_rule_that_is_none(tmp_path: Path) -> None:
    refused = sharedfs("mount", str(tmp_path), "--tenant", "conatiner", check=False)
    assert refused.returncode == 2
    assert "'conatiner' is no tenant rule: write container, job, pod, unit, leaf, or a pattern" in refused.stderr
    assert refused.stderr.count("\n") == 1
