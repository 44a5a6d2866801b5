"""The kernel's memory limits of a tenant: read, and moved without ever calling the OOM killer (I5)."""

from controller.limits.base import KernelLimits
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from sharedfs.kernel.cgroups import CgroupVersion, MemoryHierarchy


def kernel_limits(hierarchy: MemoryHierarchy, floor_bytes: int) -> KernelLimits:
    """The limits of this host's hierarchy. `floor_bytes` is the room that v2's memory.max keeps above usage."""
    if hierarchy.version is CgroupVersion.V1:
        return LimitsV1(hierarchy)
    return LimitsV2(hierarchy, floor_bytes)
