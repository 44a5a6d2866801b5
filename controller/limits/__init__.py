"""The kernel's memory limits of a tenant: read, and moved without ever calling the OOM killer (I5)."""

from pathlib import Path

from controller.limits.base import KernelLimits, WriteFile, write_file
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from sharedfs.kernel.cgroups import CgroupVersion, MemoryHierarchy

SYSTEMD_BOOTED = Path("/run/systemd/system")
"""There when systemd is process 1 (sd_booted(3))."""


def kernel_limits(hierarchy: MemoryHierarchy, floor_bytes: int) -> KernelLimits:
    """The limits of this host's hierarchy. `floor_bytes` is the room that v2's memory.max keeps above usage."""
    write = _writer(hierarchy)
    if hierarchy.version is CgroupVersion.V1:
        return LimitsV1(hierarchy, write)
    return LimitsV2(hierarchy, floor_bytes, write)


def _writer(hierarchy: MemoryHierarchy) -> WriteFile:
    if not SYSTEMD_BOOTED.is_dir():
        return write_file
    from controller.limits.systemd import Systemd, SystemdWriter  # noqa: PLC0415 - D-Bus, where there is a use for it

    return SystemdWriter(hierarchy, Systemd())
