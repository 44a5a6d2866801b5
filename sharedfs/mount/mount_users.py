"""Who keeps a mount: processes with files of it, and mounts of it elsewhere, in containers above all.

Files are told by the filesystem's device, because links in /proc do not begin with the mountpoint any more once the
mount was taken away. Nothing here waits for the filesystem. Links and maps wait for a process that executes a program:
a child reads them (`linux/looker.py`), and of whoever is stuck mountinfo alone is read.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sharedfs.linux import procfs
from sharedfs.linux.cgroups import MemoryHierarchy
from sharedfs.linux.file_device import device_of
from sharedfs.linux.looker import Looker, is_unseen, one_round
from sharedfs.linux.mountinfo import Mount, mounts

_MOST_NAMES = 5
ELSEWHERE = "a mount of it"
"""How a process keeps the mount that has no file of it, but has it mounted in another mount namespace."""


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process that keeps the mount, and its cgroup; `how` is what it has of it."""

    process_id: int
    name: str
    cgroup: str
    how: str


@dataclass(frozen=True, slots=True)
class _Spot:
    """What a mount stands on, and at which path of that filesystem."""

    on: Mount
    place: str

    def goes_with(self, other: "_Spot | None") -> bool:
        """Whether what is mounted here goes when its like is unmounted from `other`, by propagation."""
        return other is not None and self.place == other.place and self.on.goes_with(other.on)


@dataclass(frozen=True, slots=True)
class _Question:
    """`spot` is where the mount stands: a mount that goes with it, by propagation, stays for nobody."""

    mountpoint: str
    device: tuple[int, int] | None
    mount_id: int | None
    spot: _Spot | None
    namespaces: dict[str, bool] = field(default_factory=dict)
    """Whether the filesystem stays in a mount namespace, as far as this copy of the question knows."""


def users_of(
    mountpoint: str, device: tuple[int, int] | None, mounted: Mount | None, hierarchy: MemoryHierarchy | None
) -> list[MountUser]:
    """The processes that keep the filesystem on `device` (None: not known) when `mounted` goes.

    Those that have a file of it, a mapping, their directory or their root on it, and those of other mount namespaces
    in which it stays. A mount that goes with it, by propagation (mount_namespaces(7)), counts for nobody. Without a
    device files are told by `mountpoint`, in paths of this mount namespace.
    """
    spot = None if mounted is None else _spot_of(mounted, mounts())
    question = _Question(mountpoint, device, None if mounted is None else mounted.id, spot, {_namespace("self"): False})
    looker = Looker(look)
    found = []
    try:
        others = (process_id for process_id in procfs.process_ids() if process_id != os.getpid())
        for process_id, seen in one_round(looker, others, question):
            if is_unseen(seen):
                if _stuck_elsewhere(process_id, question):
                    found.append(_user(process_id, ELSEWHERE, procfs.cgroup_of(f"/proc/{process_id}"), hierarchy))
            elif seen is not None:
                how, text = seen
                found.append(_user(process_id, how, text, hierarchy))
    finally:
        looker.close()
    return found


def look(process_id: int, question: _Question) -> tuple[str, bytes | None] | None:
    """For the child of a `Looker`: how a process keeps the mount, and its cgroup's text; None when it does not."""
    how = next(_uses(process_id, question), None) or _elsewhere(process_id, question)
    return None if how is None else (how, procfs.process_cgroup(process_id))


def _elsewhere(process_id: int, question: _Question) -> str | None:
    if question.device is None:
        return None
    try:
        namespace = _namespace(process_id)
        if namespace not in question.namespaces:
            question.namespaces[namespace] = _stays_in(process_id, question.device, question.spot)
    except OSError:
        return None  # gone, or a kernel thread
    return ELSEWHERE if question.namespaces[namespace] else None


def _stuck_elsewhere(process_id: int, question: _Question) -> bool:
    """Of a process whose mount namespace cannot be told by name: it is another one when `mounted` is not in it."""
    try:
        here = question.mount_id in {mount.id for mount in mounts(process_id)}
        return not here and question.device is not None and _stays_in(process_id, question.device, question.spot)
    except OSError:
        return False


def other_mountpoints(device: tuple[int, int] | None, mounted: Mount | None) -> list[str]:
    """Where else in this mount namespace the filesystem on `device` stays mounted when `mounted` (None: gone) goes."""
    if device is None:
        return []
    seen = mounts()
    spot, own = (None, None) if mounted is None else (_spot_of(mounted, seen), mounted.id)
    return [mount.mountpoint for mount in _stay(seen, device, spot) if mount.id != own]


def mounted_on(mounted: Mount) -> list[str]:
    """Where other filesystems are mounted on directories of this mount, over its root too."""
    return [mount.mountpoint for mount in mounts() if mount.parent == mounted.id]


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


def _stays_in(process_id: int, device: tuple[int, int], spot: _Spot | None) -> bool:
    return any(True for _ in _stay(mounts(process_id), device, spot))


def _stay(seen: list[Mount], device: tuple[int, int], spot: _Spot | None) -> Iterator[Mount]:
    """The mounts of a filesystem that do not go with the one that stands at `spot`."""
    for mount in seen:
        if mount.device == device:
            stands = _spot_of(mount, seen)
            if stands is None or not stands.goes_with(spot):
                yield mount


def _spot_of(mount: Mount, seen: list[Mount]) -> _Spot | None:
    """Where a mount stands; None when that is not to be seen."""
    on = next((other for other in seen if other.id == mount.parent), None)
    if on is None:
        return None
    return _Spot(on, os.path.normpath(os.path.join(on.root, os.path.relpath(mount.mountpoint, on.mountpoint))))


def _uses(process_id: int, question: _Question) -> Iterator[str]:
    task = procfs.living_task(process_id)
    links = [(f"{task}/cwd", "its directory"), (f"{task}/root", "its root")]
    with suppress(OSError):
        links += ((f"{task}/fd/{name}", "an open file") for name in os.listdir(f"{task}/fd"))
    for link, how in links:
        if _is_on(link, question):
            yield how
    if question.device is not None and procfs.maps_device(process_id, question.device):
        yield "a mapping"


def _is_on(link: str, question: _Question) -> bool:
    if question.device is not None:
        return device_of(link) == question.device
    try:
        target = os.readlink(link)
    except OSError:
        return False
    return target == question.mountpoint or target.startswith(question.mountpoint + "/")


def _user(process_id: int, how: str, text: bytes | None, hierarchy: MemoryHierarchy | None) -> MountUser:
    cgroup = None if hierarchy is None else hierarchy.path_in(text or b"")
    try:
        name = Path(f"/proc/{process_id}/comm").read_text(errors="replace").strip()
    except OSError:
        name = "?"
    return MountUser(process_id, name, cgroup or "a process", how)
