"""Mounting, remounting and unmounting: every check that can be made before anything is changed."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from errno import EBUSY
from pathlib import Path, PurePosixPath
from typing import NoReturn

import psutil

from sharedfs.api.types import NEW_IN_STATUS, PoolRecord, PoolStatus, Remount, StateVersion
from sharedfs.api.unix_client import CONFLICT, NoAnswer, ask
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.units import format_size
from sharedfs.linux import cachestat, huge_pages, syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.huge_pages import NEVER
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.linux.mount_flags import MS_REMOUNT
from sharedfs.linux.mountinfo import Mount, mount_at
from sharedfs.mount import mount_users
from sharedfs.pool import registry, schema, spill_directory
from sharedfs.pool.options import (
    FILESYSTEM_TYPE,
    Asked,
    PoolOptions,
    check_unclaimed,
    flag_words,
    flags_of,
    setting_words,
    written,
)
from sharedfs.supervisor import fd_store

_SHM = ("dev", "shm")
_RELOAD_BYTES = 45 << 20  # a full pool has 53 MiB left, and is reloaded
_RELOAD_SECONDS = 240.0  # the new version imports everything first, on a busy host too
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 10.0
ALL_FLAGS = -1
# The store's and the data path's caches of descriptors (2048 + 4096), two of callers' (1024 each), and some to spare.
_OPEN_FILES = 10_000


def resolve(mountpoint: str) -> str:
    """The absolute path of a mountpoint. Its last component is not looked at: what is mounted there may be dead."""
    if not mountpoint:
        raise CallerMistake("the mountpoint is empty: give a directory")
    absolute = os.path.abspath(mountpoint)
    parent, last = os.path.split(absolute)
    resolved = os.path.join(os.path.realpath(parent), last)
    if mount_at(resolved) is None and os.path.islink(resolved):
        return os.path.realpath(resolved)
    return resolved


def require_root() -> None:
    if os.geteuid() != 0:
        raise CallerMistake("sharedfs mounts filesystems and reads cgroups: run it as root")


def check(options: PoolOptions, *, handed_down: bool = False) -> None:
    """Raises CallerMistake for everything that would keep the pool from being mounted as asked.

    `handed_down`: a service manager has kept it since another keeper mounted it.
    """
    require_root()
    registry.check_name(options.name)
    _check_size(options.size_bytes)
    if not Path("/dev/fuse").exists():
        raise CallerMistake("there is no /dev/fuse: load the module with `modprobe fuse`, or pass the device through")
    _check_huge(options.huge)
    if handed_down:
        return
    _check_mountpoint(options.mountpoint)
    _check_parent(options.cgroup_parent)
    check_unclaimed(options)
    if options.spill_directory:
        _check_spill_directory(options)
    record = registry.read_record(options.name)
    if record is not None and registry.is_served(record):
        raise CallerMistake(
            f"a pool named {options.name} is already mounted at {record.mountpoint}: choose another name"
        )
    if Path(options.mountpoint).parts[-2:] == _SHM:
        print(
            "sharedfs: warning: shm_open and sem_open of glibc before 2.34 (Debian 11, Ubuntu 20.04, RHEL 8) accept "
            f"only a tmpfs at {options.mountpoint}: such programs use another tmpfs, or fail",
            file=sys.stderr,
        )


def _check_size(size_bytes: int) -> None:
    memory = psutil.virtual_memory().total
    if not 0 < size_bytes <= memory:
        raise CallerMistake(
            f"a size of {format_size(size_bytes)} must be more than 0 and at most this host's memory, "
            f"{format_size(memory)}"
        )


def _check_parent(parent: str) -> None:
    """A cgroup that is not there is made; what is there must be one."""
    hierarchy, path = find_memory_hierarchy(), PurePosixPath("/") / parent.strip("/")
    for step in (path, *path.parents):
        if hierarchy.directory(str(step)).is_file():
            raise CallerMistake(f"{step} is a file of cgroups and no cgroup: choose another --cgroup-parent")


def _check_spill_directory(options: PoolOptions) -> None:
    try:
        if not stat.S_ISDIR(os.stat(options.spill_directory).st_mode):
            raise CallerMistake(f"spill_dir={options.spill_directory} is not a directory: give one on a disk")
    except OSError as error:
        raise CallerMistake(f"spill_dir={options.spill_directory}: {error.strerror}: make it first") from None
    if Path(os.path.realpath(options.spill_directory)).is_relative_to(os.path.realpath(options.mountpoint)):
        raise CallerMistake(f"spill_dir={options.spill_directory} is on the pool itself: give a directory on a disk")
    spill_directory.check(options.spill_directory, options.name)


def _check_huge(huge: str) -> None:
    if huge == NEVER:
        return
    if huge_pages.page_bytes() is None:
        raise CallerMistake(f"this kernel has no transparent huge pages: leave out huge={huge}")
    if huge_pages.are_denied():
        raise CallerMistake(
            f"this host denies tmpfs huge pages: leave out huge={huge}, "
            f"or `echo never > {huge_pages.SHMEM_ENABLED}` first"
        )
    if not cachestat.can_be_asked():
        raise CallerMistake(
            f"this kernel does not tell which pages are resident: leave out huge={huge}, or use Linux 6.5"
        )


def _check_mountpoint(mountpoint: str) -> None:
    mounted = mount_at(mountpoint)
    if mounted is not None:
        kind = "a pool" if mounted.kind == FILESYSTEM_TYPE else f"a filesystem ({mounted.kind})"
        raise CallerMistake(
            f"{kind} is already mounted at {mountpoint}: `sharedfs umount {mountpoint}` first, or choose another place"
        )
    try:
        mountpoint.encode()
    except UnicodeEncodeError:
        raise CallerMistake(f"{os.fsencode(mountpoint)!r} is not UTF-8: choose another place") from None
    try:
        if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
            raise CallerMistake(f"{mountpoint} is not a directory: give an empty directory")
        if os.listdir(mountpoint):
            raise CallerMistake(f"{mountpoint} is not empty: give an empty directory")
    except FileNotFoundError:
        raise CallerMistake(f"{mountpoint} does not exist: `mkdir -p {mountpoint}` first") from None
    except OSError as error:
        raise CallerMistake(f"{mountpoint}: {error.strerror}: give an empty directory") from None


def mount_in_foreground(options: PoolOptions) -> NoReturn:
    """Become the keeper of the pool."""
    arguments = _prepare_keeper(options)
    os.execv(arguments[0], arguments)


def mount_in_background(options: PoolOptions) -> int:
    """Start a keeper with these options and wait until its pool serves; its exit code when it does not.

    A keeper that cannot start says why on our standard error itself.
    """
    arguments = _prepare_keeper(options)
    ours, theirs = os.pipe()
    keeper = subprocess.Popen(
        [*arguments, str(theirs)],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs],
        start_new_session=True,
        cwd="/",
        env={
            # Whatever service we are part of, its manager is not the keeper's.
            **{name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            "SHAREDFS_RUN_DIR": os.path.abspath(paths.run_directory()),
        },
    )
    os.close(theirs)
    try:
        return 0 if os.read(ours, 1) else keeper.wait()
    finally:
        os.close(ours)


def _prepare_keeper(options: PoolOptions) -> list[str]:
    """The command line of a keeper, when nothing is in its way."""
    handed_down = fd_store.are_there()
    check(options, handed_down=handed_down)
    _allow_open_files()
    dead = registry.read_record(options.name)
    if dead is not None and not handed_down:
        registry.clean_up_dead(dead)
    module = ["-P", "-m", "sharedfs.supervisor.keeper"]  # -P: no module comes from the directory that root stands in
    return [sys.executable, *module, options.mountpoint, options.name, written(options)]


def _allow_open_files() -> None:
    """A login shell's limit (1024) is less than our caches of descriptors hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), max(hard, _OPEN_FILES)))
    except ValueError as error:  # in a container that lacks CAP_SYS_RESOURCE
        raise CallerMistake(
            f"a pool needs {_OPEN_FILES} open files and may have {hard}: `ulimit -Hn {_OPEN_FILES}` first ({error})"
        ) from error


def remount(mountpoint: str, asked: Asked, *, keep_flags: int) -> None:
    """Change flags and settings of a mounted pool. Its flags in `keep_flags` stay unless `asked` says otherwise.

    The flags are the kernel's and change here; size and other settings are changed by the daemon, which may refuse:
    the flags are then put back.
    """
    require_root()
    record = registry.record_at(mountpoint)
    mounted = mount_at(mountpoint)
    if record is None or mounted is None or mounted.kind != FILESYSTEM_TYPE or not registry.is_served(record):
        raise registry.none_at(mountpoint)
    if "size_bytes" in asked.settings:
        _check_size(asked.settings["size_bytes"])
    old = flags_of(mounted)
    new = asked.flags_on(old & keep_flags)
    _set_flags(mounted, new)
    try:
        _tell_daemon(record.name, ",".join(flag_words(new) + setting_words(asked.settings)))
    except BaseException:
        _set_flags(mounted, old)
        raise


def _set_flags(mounted: Mount, flags: int) -> None:
    try:
        syscalls.mount(mounted.source, mounted.mountpoint, mounted.kind, MS_REMOUNT | flags, "")
    except OSError as error:
        if error.errno != EBUSY:
            raise
        raise CallerMistake(
            f"{mounted.mountpoint} has files open for writing{_named_users(mounted)}: close them first"
        ) from None


def _tell_daemon(name: str, options: str) -> None:
    body = Remount(options=options).model_dump()
    try:
        answer = ask(paths.feed_socket(name), "POST", "/v1/remount", body=body, timeout_seconds=_ANSWER_SECONDS)
    except NoAnswer as error:
        raise HostFault(f"the daemon of pool {name} does not answer: {error}") from error
    if answer.status == CONFLICT:
        raise CallerMistake(answer.json()["detail"])
    if not answer.is_success:
        raise HostFault(f"the daemon of pool {name} could not change: {answer.content.decode(errors='replace')}")


def reload(mountpoint: str) -> None:
    """Have the pool at `mountpoint` served by a daemon of the installed version, and wait until it is."""
    require_root()
    record = registry.record_at(mountpoint)
    if record is None or not registry.is_served(record):
        raise registry.none_at(mountpoint)
    deadline = time.monotonic() + _RELOAD_SECONDS
    before = _await_status(record, deadline, lambda _: True)
    if before is None:
        raise HostFault(f"{_state_of(record, None)}; nothing was changed")
    _check_state_version(record, before)
    _check_room(record, before)
    try:
        os.kill(record.keeper_pid, signal.SIGHUP)
    except ProcessLookupError:
        raise HostFault(_state_of(record, None)) from None
    if _await_status(record, deadline, lambda now: _took_over(before, now)) is None:
        raise HostFault(_state_of(record, ask_status(record.name)))


def _check_state_version(record: PoolRecord, now: PoolStatus) -> None:
    """Raise HostFault when the installed version cannot read what the daemon leaves. The spare would end for it, too.

    A daemon that does not know the question leaves version 1.
    """
    try:
        answer = ask(paths.feed_socket(record.name), "GET", "/v1/state-version", timeout_seconds=_ANSWER_SECONDS)
    except NoAnswer:
        return
    found = StateVersion.model_validate_json(answer.content) if answer.is_success else None
    kept = schema.UNMARKED if found is None else schema.Kept(found.version, found.leaves)
    if kept.for_reader(schema.READS) is None:
        raise HostFault(f"{kept.refusal(schema.READS)}; daemon {now.daemon_pid} goes on")


def _check_room(record: PoolRecord, now: PoolStatus) -> None:
    """Raise CallerMistake where two daemons at a time would not have room below a limit: the kernel would kill one."""
    with closing(MemoryLimits(find_memory_hierarchy(), record.pool_cgroup)) as limits:
        readings = limits.read(_RELOAD_BYTES)
    tightest = min(readings, key=lambda reading: reading.free_bytes, default=None)
    if tightest is not None and tightest.free_bytes < _RELOAD_BYTES:
        raise CallerMistake(
            f"{tightest.name} leaves {format_size(max(0, tightest.free_bytes))}, and a reload wants "
            f"{format_size(_RELOAD_BYTES)} for two seconds: raise it first; daemon {now.daemon_pid} goes on"
        )


def _took_over(before: PoolStatus, now: PoolStatus) -> bool:
    """Whether it is the installed version that serves now. A keeper of an earlier version does not count reloads."""
    return now.daemon_pid != before.daemon_pid and (before.reloads is None or now.reloads != before.reloads)


def _await_status(record: PoolRecord, deadline: float, wanted: Callable[[PoolStatus], bool]) -> PoolStatus | None:
    """What the pool says of itself once that is as wanted; None when it is not in time, or the pool has ended."""
    while registry.is_served(record) and time.monotonic() < deadline:
        status = ask_status(record.name)
        if status is not None and wanted(status):
            return status
        time.sleep(_POLL_SECONDS)
    return None


def _state_of(record: PoolRecord, status: PoolStatus | None) -> str:
    """What has become of a pool that was not reloaded, `status` being what it says of itself now."""
    log = f"{paths.daemon_log(record.name)} may say why"
    if not registry.is_served(record):
        return f"the pool at {record.mountpoint} has ended and its files are lost: {log}"
    if status is None:
        return f"no daemon answers at {record.mountpoint}: requests wait, the keeper goes on starting one; {log}"
    return f"the installed version has not taken over: daemon {status.daemon_pid} goes on; {log}"


def ask_status(name: str, seconds: float = _ANSWER_SECONDS) -> PoolStatus | None:
    """What a pool says of itself; None when it does not answer just now."""
    try:
        query = {"knows": str(len(NEW_IN_STATUS))}
        answer = ask(paths.feed_socket(name), "GET", "/v1/status", query=query, timeout_seconds=seconds)
    except NoAnswer:
        return None
    return PoolStatus.model_validate_json(answer.content) if answer.is_success else None


def _named_users(mounted: Mount) -> str:
    """Processes that visibly use the mount, for a message."""
    found = mount_users.users_of(mounted.mountpoint, mounted.device, mounted, None)
    users = [user for user in found if user.how != mount_users.ELSEWHERE]
    return f" by {mount_users.named(users)}" if users else ""
