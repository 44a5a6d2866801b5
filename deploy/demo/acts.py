"""The demonstration's acts: the same workload on a pool and on plain tmpfs, measured.

Tenant a writes a file and maps it, tenant b maps it too; then a exits, later b, and the file is removed. Then many
short-lived tenants come and go.
Everything waited for is a condition with a bound. What is not as it should be ends the demonstration.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from controller.api.types import Bills, TenantBill
from deploy.demo import service
from deploy.demo.host import wait_until
from deploy.demo.tenants import Tenant, Tenants
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupVersion, dying_memcgs

FILE_BYTES = 64 << 20
BUDGET_BYTES = 256 << 20
CROWD = 20
CROWD_FILE_BYTES = 64 << 10
_ZOMBIE_SECONDS = 3.0
"""A removed cgroup without pages is gone within a grace period of the kernel, far less than this."""


@dataclass(frozen=True, slots=True)
class PoolAct:
    """`survivor` is b, before and after the exit of a; `seconds` from an event to the limits that follow from it."""

    shared: Bills
    alone: Bills
    deserted: Bills
    leaver: TenantBill
    survivor: tuple[TenantBill, TenantBill]
    shmem_bytes: dict[str, int]
    settle_seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TmpfsAct:
    """What the kernel charges each tenant while both use the file, b alone, and their parent when both are gone."""

    shmem_bytes: dict[str, int]
    survivor_shmem_bytes: int
    parent_shmem_bytes: int


@dataclass(frozen=True, slots=True)
class CrowdAct:
    """Dying cgroups before short-lived tenants came, when all are gone but their files, and without the files."""

    tenants: int
    before: int
    with_files: int
    without_files: int
    zombies: int


def on_pool(tenants: Tenants, directory: Path, access: str) -> PoolAct:
    """`access` is "map" or "read", the worker's action that both tenants use the file by."""
    file = directory / f"demo-{tenants.directory.name}.bin"
    try:
        a, b = _share(tenants, file, access, "pool")
        half_bytes = FILE_BYTES // 2
        settled = _wait_for_limits({a: BUDGET_BYTES - half_bytes, b: BUDGET_BYTES - half_bytes})
        shared = service.bills()
        leaver, survivor = _bill(shared, a, half_bytes), _bill(shared, b, half_bytes)
        shmem_bytes = {a.path: a.shmem_bytes, b.path: b.shmem_bytes}
        if any(shmem_bytes.values()):
            raise HostFault(f"the kernel charges tenants for the pool's pages (I2): {shmem_bytes}")

        a.exit()
        resettled = _wait_for_limits({b: BUDGET_BYTES - FILE_BYTES})
        alone = service.bills()
        survivor_after = _bill(alone, b, FILE_BYTES)
        if any(tenant.tenant == a.path for tenant in alone.tenants):
            raise HostFault(f"{a.path} is gone and still on the bill")

        b.exit()
        wait_until(lambda: _is_deserted(service.bills(), b), f"{b.path} leaves the bill")
        deserted = service.bills()
    finally:
        file.unlink(missing_ok=True)
    return PoolAct(
        shared=shared,
        alone=alone,
        deserted=deserted,
        leaver=leaver,
        survivor=(survivor, survivor_after),
        shmem_bytes=shmem_bytes,
        settle_seconds=(settled, resettled),
    )


def on_tmpfs(tenants: Tenants, directory: Path) -> TmpfsAct:
    file = directory / "demo.bin"
    a, b = _share(tenants, file, "map", "tmpfs")
    shmem_bytes = {a.path: a.shmem_bytes, b.path: b.shmem_bytes}
    a.exit()
    survivor_shmem_bytes = b.shmem_bytes
    b.exit()
    parent_shmem_bytes = tenants.shmem_bytes
    file.unlink()
    return TmpfsAct(shmem_bytes, survivor_shmem_bytes, parent_shmem_bytes)


def crowd(tenants: Tenants, directory: Path, name: str) -> CrowdAct:
    """Many tenants come, write a file of their own each, and go: which of their cgroups stay because of the files."""
    before = dying_memcgs(tenants.hierarchy, tenants.directory)
    files = [directory / f"demo-{tenants.directory.name}-{number}" for number in range(CROWD)]
    try:
        for number, file in enumerate(files):
            tenant = tenants.make(f"{name}-{number}", BUDGET_BYTES)
            tenant.do("write", file, CROWD_FILE_BYTES)
            tenant.exit()
        with_files = _fewest_dying(tenants, before)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    without_files = _fewest_dying(tenants, before)
    zombies = max(0, with_files - before)
    if (
        tenants.hierarchy.version is CgroupVersion.V1
    ):  # it counts the whole host's: ours are those that go with the files
        zombies = min(zombies, max(0, with_files - without_files))
    return CrowdAct(CROWD, before, with_files, without_files, zombies)


def _share(tenants: Tenants, file: Path, access: str, prefix: str) -> tuple[Tenant, Tenant]:
    a, b = (tenants.make(f"{prefix}-{name}", BUDGET_BYTES) for name in "ab")
    a.do("write", file, FILE_BYTES)
    a.do(access, file)
    b.do(access, file)
    return a, b


def _wait_for_limits(wanted: dict[Tenant, int]) -> float:
    """Until the kernel enforces these limits; the seconds that took. The controller is not asked, so not hurried."""
    what = ", ".join(f"the limit of {tenant.path} is {limit_bytes} bytes" for tenant, limit_bytes in wanted.items())
    return wait_until(lambda: all(tenant.limit_bytes == limit for tenant, limit in wanted.items()), what)


def _bill(bills: Bills, tenant: Tenant, share_bytes: int) -> TenantBill:
    """The tenant's bill. Raises HostFault unless it is this share, taken off the budget to the byte."""
    found = next((bill for bill in bills.tenants if bill.tenant == tenant.path), None)
    if found is None:
        raise HostFault(f"{tenant.path} uses the pool and is not on the bill")
    wanted = (share_bytes, FILE_BYTES, BUDGET_BYTES, BUDGET_BYTES - share_bytes, 0)
    told = (found.share_bytes, found.used_bytes, found.budget_bytes, found.limit_bytes, found.debt_bytes)
    if told != wanted:
        raise HostFault(f"{tenant.path}: share, used, budget, limit and debt are {told}, and should be {wanted}")
    return found


def _is_deserted(bills: Bills, last: Tenant) -> bool:
    return all(bill.tenant != last.path for bill in bills.tenants)


def _fewest_dying(tenants: Tenants, hoped: int) -> int:
    """Dying cgroups, once they are no more than `hoped`, or when they have had time enough to go."""

    def count() -> int:
        return dying_memcgs(tenants.hierarchy, tenants.directory)

    with suppress(HostFault):
        wait_until(lambda: count() <= hoped, "", _ZOMBIE_SECONDS)
    return count()
