"""Who keeps a mount: processes with files of it, and mounts of it elsewhere, in containers above all.

Reads links and mountinfo below /proc only, which never wait for a process or for the filesystem.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sharedfs.kernel import proc
from sharedfs.kernel.cgroups import MemoryHierarchy
from sharedfs.kernel.mounts import Mount, mounts

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process that keeps the mount, and its cgroup; `how` is what it has of it."""

    process_id: int
    name: str
    cgroup: str
    how: str


def users_here(mountpoint: str, hierarchy: MemoryHierarchy | None) -> list[MountUser]:
    """The processes that have a file, their directory or their root at the mount, by paths of this mount namespace."""
    found = []
    for process_id in proc.process_ids():
        how = next(_uses(process_id, mountpoint), None)
        if how is not None and process_id != os.getpid():
            found.append(_user(process_id, how, hierarchy))
    return found


def users_elsewhere(
    device: tuple[int, int], mounted: Mount | None, hierarchy: MemoryHierarchy | None
) -> list[MountUser]:
    """The processes of other mount namespaces in which the filesystem on `device` stays when `mounted` goes.

    A mount that goes with it, by propagation (mount_namespaces(7)), counts for nobody.
    """
    above = None if mounted is None else next((mount for mount in mounts() if mount.id == mounted.parent), None)
    groups = frozenset[int]() if above is None else above.groups
    stays: dict[str, bool] = {_namespace("self"): False}
    found = []
    for process_id in proc.process_ids():
        try:
            namespace = _namespace(process_id)
            if namespace not in stays:
                stays[namespace] = _stays_in(process_id, device, groups)
        except OSError:
            continue  # gone, or a kernel thread
        if stays[namespace]:
            found.append(_user(process_id, "a mount of it", hierarchy))
    return found


def other_mountpoints(mounted: Mount) -> list[str]:
    """Where else in this mount namespace the filesystem is mounted."""
    return [mount.mountpoint for mount in mounts() if mount.device == mounted.device and mount.id != mounted.id]


def named(users: list[MountUser]) -> str:
    """Users in words, by cgroup: of many the first few."""
    by_cgroup: dict[str, list[MountUser]] = {}
    for user in users:
        by_cgroup.setdefault(user.cgroup, []).append(user)
    words = [
        f"{cgroup} ({', '.join(f'{user.name}, pid {user.process_id}' for user in some[:2])}"
        + (f", and {len(some) - 2} more)" if len(some) > 2 else ")")
        for cgroup, some in sorted(by_cgroup.items())
    ]
    more = len(words) - _MOST_NAMES
    return ", ".join(words[:_MOST_NAMES]) + (f" and {more} cgroups more" if more > 0 else "")


def _namespace(process: int | str) -> str:
    return os.readlink(f"/proc/{process}/ns/mnt")


def _stays_in(process_id: int, device: tuple[int, int], groups: frozenset[int]) -> bool:
    seen = mounts(process_id)
    parents = {mount.id: mount for mount in seen}
    return any(
        mount.device == device and not (mount.parent in parents and parents[mount.parent].groups & groups)
        for mount in seen
    )


def _uses(process_id: int, mountpoint: str) -> Iterator[str]:
    task = proc.living_task(process_id)
    links = [(f"{task}/cwd", "its directory"), (f"{task}/root", "its root")]
    with suppress(OSError):
        links += ((f"{task}/fd/{name}", "an open file") for name in os.listdir(f"{task}/fd"))
    for link, how in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == mountpoint or target.startswith(mountpoint + "/"):
            yield how


def _user(process_id: int, how: str, hierarchy: MemoryHierarchy | None) -> MountUser:
    text = proc.process_cgroup(process_id) or b""
    cgroup = None if hierarchy is None else hierarchy.path_in(text)
    try:
        name = Path(f"/proc/{process_id}/comm").read_text(errors="replace").strip()
    except OSError:
        name = "?"
    return MountUser(process_id, name, cgroup or "a process", how)
