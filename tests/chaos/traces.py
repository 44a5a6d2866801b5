"""What tenants of the chaos job leave behind: charges, processes, kills for want of memory, lines in logs."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import httpx

from sharedfs.api.types import UsersOfFile
from sharedfs.linux.cgroups import CgroupVersion
from sharedfs.linux.page_charges import PageCharges
from tests.support.mount import MountedPool
from tests.support.tenants import Tenant

PATIENCE_SECONDS = 60.0


def charges_nothing(tenant: Tenant, pool_path: Path) -> bool:
    """Whether the kernel charges no page of the pool to a tenant or below it.

    After a collapse memory.stat alone does not tell.
    """
    name = "total_shmem" if tenant.hierarchy.version is CgroupVersion.V1 else "shmem"
    if tenant.statistic(name) == 0:
        return True
    inodes = {place.stat().st_ino for place in (tenant.directory, *tenant.directory.glob("*/"))}
    with PageCharges() as charges:
        for place, _, names in os.walk(pool_path):
            for name in names:
                with suppress(OSError), open(os.path.join(place, name), "rb") as file:
                    if inodes & charges.of(file.fileno()).keys():
                        return False
    return True


def unlike_the_books(pool: MountedPool, directory: Path) -> dict[str, tuple[int, int]] | None:
    """The files in a directory of the pool that have other bytes than the books say, and both; None: no answer yet."""
    unlike = {}
    try:
        for path in directory.iterdir():
            found = path.stat()
            if stat.S_ISREG(found.st_mode):
                answer = pool.get("/v1/files/users", path=str(path.relative_to(pool.path))).raise_for_status()
                booked_bytes = UsersOfFile.model_validate_json(answer.content).file.resident_bytes
                if booked_bytes != found.st_blocks * 512:
                    unlike[path.name] = found.st_blocks * 512, booked_bytes
    except httpx.TransportError:  # the daemon has died
        return None
    return unlike


def oom_kills(tenant: Tenant) -> int:
    """How many processes of a tenant and below it the kernel has killed for want of memory."""
    name = "memory.oom_control" if tenant.hierarchy.version is CgroupVersion.V1 else "memory.events"
    kills = 0
    for place in (tenant.directory, *tenant.directory.glob("*/")):
        lines = dict(line.split() for line in (place / name).read_text().splitlines())
        kills += int(lines["oom_kill"])
    return kills


def processes_below(directory: Path) -> list[int]:
    """The processes in a cgroup and in those below it."""
    found = []
    for place, _, _ in os.walk(directory):
        with suppress(OSError):  # it went
            found += [int(line) for line in Path(place, "cgroup.procs").read_text().split()]
    return found


def complaints(log: Path) -> list[str]:
    """The lines of a service's log that should not be there."""
    return [line for line in log.read_text().splitlines() if "ERROR" in line or "Traceback" in line]
