"""The limits of this host: picks the version of the memory controller, and whether systemd writes its files."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from controller.limits.cgroup_files import write_file
from controller.limits.types import KernelLimits, WriteFile
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy

SYSTEMD_BOOTED = Path("/run/systemd/system")
"""There when systemd is process 1 (sd_booted(3))."""


@contextmanager
def kernel_limits(hierarchy: MemoryHierarchy) -> Iterator[KernelLimits]:
    """The limits of this host's hierarchy."""
    with _writer(hierarchy) as write:
        if hierarchy.version is CgroupVersion.V1:
            yield LimitsV1(hierarchy, write)
        else:
            yield LimitsV2(hierarchy, write)


@contextmanager
def _writer(hierarchy: MemoryHierarchy) -> Iterator[WriteFile]:
    if not SYSTEMD_BOOTED.is_dir():
        yield write_file
        return
    from controller.limits.systemd import Systemd, SystemdWriter  # noqa: PLC0415 - D-Bus, where there is a use for it

    with closing(Systemd()) as systemd:
        yield SystemdWriter(hierarchy, systemd)
