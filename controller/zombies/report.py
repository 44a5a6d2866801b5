"""Joins the census with the shared files: which file holds which dying cgroups' memory, and who still uses it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from controller.zombies.census import Census, Held, take_census
from controller.zombies.files import ChargedFiles, SharedFile, SharedFiles, find_shared_files
from controller.zombies.types import DyingBelow, Holder, User, Zombies
from sharedfs.linux.cgroups import MemoryHierarchy


def find_zombies(hierarchy: MemoryHierarchy, progress: Callable[[str], None] = lambda _: None) -> Zombies:
    """Look at the whole host; some seconds where there is much shared memory. Needs root. Raises HostFault."""
    progress("cgroups")
    census = take_census(hierarchy)
    suspects = {held.inode: held for held in census.held if held.shmem_bytes}
    holders: list[Holder] = []
    shared = SharedFiles()
    if suspects:
        shared = find_shared_files(progress)
        numbered = dict(enumerate(shared.files.values()))
        for number, charged in ChargedFiles(numbered).all():
            progress(numbered[number].path)
            holder = _holder(numbered[number], charged, suspects, shared.cgroups, hierarchy)
            if holder is not None:
                holders.append(holder)
    return Zombies(
        cgroup_version=int(hierarchy.version),
        dying=census.dying,
        kernel_bytes=census.least_kernel_bytes,
        groups=tuple(_told(held) for held in _largest_first(census)),
        holders=tuple(sorted(holders, key=lambda holder: (holder.exact, holder.held_bytes or 0), reverse=True)),
        hidden_processes=shared.hidden,
        unseen_processes=shared.unseen,
    )


def _largest_first(census: Census) -> list[Held]:
    return sorted(census.held, key=lambda held: (held.shmem_bytes, held.dying or 0), reverse=True)


def _told(held: Held) -> DyingBelow:
    return DyingBelow(
        cgroup=held.path,
        dying=held.dying,
        shmem_bytes=held.shmem_bytes,
        page_cache_bytes=held.page_cache_bytes,
        swap_bytes=held.swap_bytes,
        exact=held.exact,
    )


def _holder(
    file: SharedFile,
    charged: tuple[int, dict[int, int]] | None,
    suspects: dict[int, Held],
    cgroups: Mapping[int, bytes],
    hierarchy: MemoryHierarchy,
) -> Holder | None:
    """None for a file that holds nothing of a dying cgroup, or that is gone."""
    if not file.opened_by:
        return _told_holder(file, None, [], file.size_bytes or 0, cgroups, hierarchy) if file.kind == "sysv" else None
    if charged is None:
        return None
    size_bytes, by_cgroup = charged
    held = {inode: min(size, suspects[inode].shmem_bytes) for inode, size in by_cgroup.items() if inode in suspects}
    if not held:
        return None
    return _told_holder(file, sum(held.values()), [suspects[inode] for inode in held], size_bytes, cgroups, hierarchy)


def _told_holder(
    file: SharedFile,
    held_bytes: int | None,
    below: list[Held],
    size_bytes: int,
    cgroups: Mapping[int, bytes],
    hierarchy: MemoryHierarchy,
) -> Holder:
    users = (_user(process, how, cgroups.get(process, b""), hierarchy) for process, how in sorted(file.users.items()))
    return Holder(
        kind=file.kind,
        path=file.path,
        size_bytes=size_bytes,
        held_bytes=held_bytes,
        below=tuple(sorted(held.path for held in below)),
        exact=held_bytes is not None and all(held.pure for held in below),
        users=tuple(user for user in users if user is not None),
    )


def _user(
    process: int, how: set[Literal["maps", "holds"]], cgroup_text: bytes, hierarchy: MemoryHierarchy
) -> User | None:
    with suppress(FileNotFoundError, ProcessLookupError):
        cgroup = hierarchy.path_in(cgroup_text)
        if cgroup is None:
            return None
        name = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
        return User(pid=process, name=name, cgroup=cgroup, how=tuple(sorted(how)))
    return None
