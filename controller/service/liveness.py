"""Whether anybody lives in a cgroup."""

import os

from sharedfs.linux.cgroups import CgroupVersion, MemoryHierarchy


def is_populated(hierarchy: MemoryHierarchy, path: str) -> bool:
    """Whether a process is in the cgroup at `path` or below it. O(cgroups below) on v1, O(1) on v2."""
    directory = hierarchy.directory(path)
    if hierarchy.version is CgroupVersion.V2:
        try:
            return "populated 1" in (directory / "cgroup.events").read_text().splitlines()
        except OSError:  # the root has no such file and always processes; a removed group has neither
            return bool(hierarchy.processes(path))
    # topdown: a group with processes of its own, the common case, is told without looking below.
    root = str(hierarchy.mount)
    return any(hierarchy.processes(os.path.relpath(group, root)) for group, _, _ in os.walk(directory))
