"""The keeper: holds what a pool must not lose, and starts the daemon again when it dies.

It opens /dev/fuse, makes the private tmpfs of the data and one of the state, mounts, and then only waits. A connection
lives as long as somebody holds its descriptor, and so does a tmpfs that is mounted nowhere: the daemon may die at any
time, requests wait for its successor.

    keeper ──▶ spare: has imported everything, forks  ──▶ daemon: serves
       ▲  └──── SIGCHLD, end of the link ◀────────────────────┘

A daemon that died is followed by another (`supervisor/daemons.py`). When many in a row die young the keeper gives up:
it unmounts and ends, which aborts the connection, so that nobody hangs. Under a service manager that keeps descriptors
(see `supervisor/fd_store.py`) the keeper may die, too.

It must never hold or touch a file of the mount: the kernel would ask the daemon, which only we can start. And it
imports little, for it stays in memory.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from sharedfs.api.unix_listener import listen_at
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.logs import log_to_stderr
from sharedfs.common.standard_streams import open_standard_streams
from sharedfs.fuse.protocol import MAX_WRITE
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.huge_pages import ADVISE, NEVER
from sharedfs.linux.mount_flags import atime_attributes
from sharedfs.linux.mountinfo import mount_at
from sharedfs.linux.service_manager import ServiceManager
from sharedfs.pool import lock, schema, spill_directory
from sharedfs.pool.cgroup import PoolCgroup, be_never_killed, join_pool_cgroup
from sharedfs.pool.options import FILESYSTEM_TYPE, PoolOptions, parse
from sharedfs.pool.schema import Held
from sharedfs.storage.room import check_room
from sharedfs.storage.tmpfs import make_state, make_tmpfs
from sharedfs.supervisor.daemons import Daemons
from sharedfs.supervisor.fd_store import received

_SHOWN_LOG_BYTES = 64 << 10  # when the first daemon could not start


def _make_descriptors(options: PoolOptions, lock_fd: int) -> tuple[dict[str, int], int]:
    """What a daemon needs to serve a new pool, and the descriptor that holds the mount of its tmpfs together."""
    owner = (options.root_uid, options.root_gid)
    atime = atime_attributes(options.flags)
    huge = None if options.huge == NEVER else ADVISE
    mount_fd, store_fd = make_tmpfs(options.size_bytes, options.inodes, options.root_mode, owner, atime, huge)
    spill = dict[str, int]()
    if options.spill_directory:
        spill[Held.SPILL] = spill_directory.open_or_make(options.spill_directory, options.name)
    return {
        **spill,
        Held.LOCK: lock_fd,
        Held.DEVICE: os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC),
        Held.STORE: store_fd,
        Held.STATE: make_state(),
        Held.FEED: listen_at(paths.feed_socket(options.name)).detach(),
    }, mount_fd


def _write_record(options: PoolOptions, cgroup: PoolCgroup, device: tuple[int, int] | None) -> None:
    record = {
        "name": options.name,
        "mountpoint": options.mountpoint,
        "keeper_pid": os.getpid(),
        "pool_cgroup": cgroup.path,
        "removable_cgroups": cgroup.removable,
        "device": device,
    }
    draft = paths.pool_directory(options.name) / paths.POOL_RECORD_DRAFT
    draft.unlink(missing_ok=True)
    with draft.open("x", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2) + "\n")
    draft.rename(paths.pool_record(options.name))


def _unmount(mountpoint: str, device: tuple[int, int]) -> None:
    """Take our mount away, if it is still there; lazily, for tenants may be in it."""
    mount = mount_at(mountpoint)
    if mount is not None and mount.device == device:
        with suppress(OSError):
            syscalls.umount(mountpoint, syscalls.MNT_DETACH)


def keep(options: PoolOptions, ready_fd: int | None) -> int:
    """Serve a pool until it is unmounted; the exit code. Everything is undone at the end, also of half a start."""
    manager, descriptors = ServiceManager(), received()
    log_fd = None
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    was_served = Held.DEVICE in descriptors
    if was_served:
        schema.check_left(descriptors[Held.STATE])  # nothing is touched: a keeper of another package can serve it
    with ExitStack() as resources:
        lock_fd = descriptors[Held.LOCK] if was_served else lock.claim(options.name)
        resources.callback(os.close, lock_fd)
        leave_no_trace = resources.enter_context(ExitStack())
        leave_no_trace.callback(lock.forget, options.name)
        if ready_fd is not None:
            log_fd = os.open(
                paths.daemon_log(options.name),
                os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
        cgroup = join_pool_cgroup(find_memory_hierarchy(), options.cgroup_parent, options.name)
        device = None
        if was_served:  # what is there now, another keeper of this pool has made
            before = json.loads(paths.pool_record(options.name).read_text())
            cgroup, device = replace(cgroup, removable=tuple(before["removable_cgroups"])), before.get("device")
        be_never_killed()
        leave_cgroup = resources.enter_context(ExitStack())
        leave_cgroup.callback(cgroup.leave)
        if not was_served:
            check_room(cgroup.hierarchy, cgroup.path, options.size_bytes)
            descriptors, _ = _make_descriptors(options, lock_fd)
            connection = f"fd={descriptors[Held.DEVICE]},rootmode=40000,user_id=0,group_id=0"
            access = f"allow_other,default_permissions,max_read={MAX_WRITE}"
            syscalls.mount(options.name, options.mountpoint, FILESYSTEM_TYPE, options.flags, f"{connection},{access}")
            for name, fd in descriptors.items():
                manager.keep(name, fd)
        mount = mount_at(options.mountpoint)
        if mount is not None and mount.kind == FILESYSTEM_TYPE:
            device = mount.device
        elif not was_served:  # else it was taken away here while others have it (`sharedfs umount --lazy`)
            raise HostFault(f"{options.mountpoint} is not in /proc/self/mountinfo after mount(2)")
        unmount = resources.enter_context(ExitStack())
        if device is not None:
            unmount.callback(_unmount, options.mountpoint, tuple(device))
        _write_record(options, cgroup, device)
        daemons = Daemons(options, ready_fd, manager, descriptors, was_served, cgroup, log_fd)
        code = daemons.run()
        if daemons.keeps_mount:
            unmount.pop_all()
            leave_cgroup.pop_all()
        if daemons.keeps_mount or (code and daemons.was_served):
            leave_no_trace.pop_all()  # the log says why; `sharedfs umount` clears it away
        elif code and log_fd is not None:
            sys.stderr.buffer.write(os.pread(log_fd, _SHOWN_LOG_BYTES, 0))
    return code


def main(arguments: Sequence[str]) -> int:
    """`-m sharedfs.supervisor.keeper MOUNTPOINT NAME OPTIONS [READY-FD]`, after `sharedfs mount` has checked all."""
    mountpoint, name, words, *ready = arguments
    open_standard_streams()
    log_to_stderr()
    try:
        return keep(parse(words, 0).options(mountpoint, name, 0), int(ready[0]) if ready else None)
    except (CallerMistake, HostFault, OSError) as error:
        print(f"sharedfs: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, CallerMistake) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
