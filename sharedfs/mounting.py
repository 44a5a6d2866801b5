"""Mounting, remounting and unmounting: every check that can be made before anything is changed."""

import logging
import os
import resource
import stat
import subprocess
import sys
from contextlib import suppress
from errno import EBUSY
from pathlib import Path

import psutil

from sharedfs import places, pools
from sharedfs.errors import CallerMistake, HostFault
from sharedfs.feed_types import Remount
from sharedfs.kernel import syscalls
from sharedfs.kernel.mount_flags import MS_REMOUNT
from sharedfs.kernel.mounts import Mount, mount_at
from sharedfs.mount_options import FILESYSTEM_TYPE, Asked, PoolOptions, flag_words, flags_of, setting_words, written
from sharedfs.units import format_size

_DAEMON_END_SECONDS = 20.0
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


def check(options: PoolOptions) -> None:
    """Raises CallerMistake for everything that would keep the pool from being mounted as asked."""
    require_root()
    pools.check_name(options.name)
    _check_size(options.size_bytes)
    if not Path("/dev/fuse").exists():
        raise CallerMistake("there is no /dev/fuse: load the module with `modprobe fuse`, or pass the device through")
    _check_mountpoint(options.mountpoint)
    record = pools.read_record(options.name)
    if record is not None and pools.is_served(record):
        raise CallerMistake(
            f"a pool named {options.name} is already mounted at {record.mountpoint}: choose another name"
        )


def _check_size(size_bytes: int) -> None:
    memory = psutil.virtual_memory().total
    if not 0 < size_bytes <= memory:
        raise CallerMistake(
            f"a size of {format_size(size_bytes)} must be more than 0 and at most this host's memory, "
            f"{format_size(memory)}"
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


def mount_in_foreground(options: PoolOptions, ready_fd: int | None) -> None:
    """Serve in this process. `ready_fd` is closed after a byte when the mount serves, and the log goes to its file."""
    from sharedfs.daemon import run  # noqa: PLC0415 - half a second of imports, which only who serves needs

    check(options)
    _allow_open_files()
    dead = pools.read_record(options.name)
    if dead is not None:
        pools.clean_up_dead(dead)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def on_ready() -> None:
        if ready_fd is not None:
            _log_to_file(options.name)
            os.write(ready_fd, b"\n")
            os.close(ready_fd)

    run(options, on_ready)


def _allow_open_files() -> None:
    """A login shell's limit (1024) is less than our caches of descriptors hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), max(hard, _OPEN_FILES)))
    except ValueError as error:  # in a container that lacks CAP_SYS_RESOURCE
        raise CallerMistake(
            f"a pool needs {_OPEN_FILES} open files and may have {hard}: `ulimit -Hn {_OPEN_FILES}` first ({error})"
        ) from error


def mount_in_background(options: PoolOptions) -> int:
    """Start a daemon with these options and wait until it serves; its exit code when it does not.

    A daemon that cannot start says why on our standard error itself.
    """
    check(options)
    ours, theirs = os.pipe()
    arguments = [options.mountpoint, "--foreground", f"--ready-fd={theirs}", f"--name={options.name}"]
    arguments += ["-o", written(options)]
    daemon = subprocess.Popen(
        [sys.executable, "-m", "sharedfs", "mount", *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs],
        start_new_session=True,
        cwd="/",
        env=os.environ | {"SHAREDFS_RUN_DIR": os.path.abspath(places.run_directory())},
    )
    os.close(theirs)
    try:
        return 0 if os.read(ours, 1) else daemon.wait()
    finally:
        os.close(ours)


def _log_to_file(name: str) -> None:
    """From here on nobody reads our standard error."""
    log = os.open(places.daemon_log(name), os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, stream)
    os.close(log)


def remount(mountpoint: str, asked: Asked, *, keep_flags: int) -> None:
    """Change flags and settings of a mounted pool. Its flags in `keep_flags` stay unless `asked` says otherwise.

    The flags are the kernel's and change here; size and other settings are changed by the daemon, which may refuse:
    the flags are then put back.
    """
    require_root()
    record = pools.record_at(mountpoint)
    mounted = mount_at(mountpoint)
    if record is None or mounted is None or mounted.kind != FILESYSTEM_TYPE or not pools.is_served(record):
        raise CallerMistake(f"no pool is mounted at {mountpoint}: `sharedfs status` lists those that are")
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
            f"{mounted.mountpoint} has files open for writing{_users_of(mounted.mountpoint)}: close them first"
        ) from None


def _tell_daemon(name: str, options: str) -> None:
    import httpx  # noqa: PLC0415 - slow to import, and only a remount needs it

    transport = httpx.HTTPTransport(uds=str(places.feed_socket(name)))
    with httpx.Client(transport=transport, base_url="http://pool", timeout=_ANSWER_SECONDS) as client:
        try:
            answer = client.post("/v1/remount", json=Remount(options=options).model_dump())
        except httpx.HTTPError as error:
            raise HostFault(f"the daemon of pool {name} does not answer: {error}") from error
    if answer.status_code == httpx.codes.CONFLICT:
        raise CallerMistake(answer.json()["detail"])
    if answer.is_error:
        raise HostFault(f"the daemon of pool {name} could not change: {answer.text}")


def umount(mountpoint: str) -> None:
    """Unmount the pool at `mountpoint` and wait until its daemon is gone and the host as it was."""
    require_root()
    record = pools.record_at(mountpoint)
    mounted = mount_at(mountpoint)
    if record is None and (mounted is None or mounted.kind != FILESYSTEM_TYPE):
        raise CallerMistake(f"no pool is mounted at {mountpoint}: `sharedfs status` lists those that are")
    daemon = None if record is None else pools.daemon_of(record)
    if mounted is not None and mounted.kind == FILESYSTEM_TYPE:
        # Without a record the daemon may well live, with another run directory: then it is not for us to pull it away.
        _take_away(mountpoint, dead=record is not None and daemon is None)
    if record is not None and daemon is not None and not pools.wait_for_end(record, _DAEMON_END_SECONDS):
        raise HostFault(f"the daemon of {mountpoint} (pid {daemon.pid}) did not end after the unmount")
    if record is not None:
        pools.clean_up_dead(record)


def _take_away(mountpoint: str, *, dead: bool) -> None:
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH if dead else 0)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        raise CallerMistake(
            f"{mountpoint} is in use{_users_of(mountpoint)}: end its users, then unmount again"
        ) from None


def _users_of(mountpoint: str) -> str:
    """Processes that visibly use the mount, for the message; symbolic links in /proc are read, not followed."""
    users = []
    for process in psutil.process_iter(["pid", "name"]):
        links = [f"/proc/{process.pid}/cwd", f"/proc/{process.pid}/root"]
        with suppress(OSError):
            links += (entry.path for entry in os.scandir(f"/proc/{process.pid}/fd"))
        for link in links:
            with suppress(OSError):
                target = os.readlink(link)
                if target == mountpoint or target.startswith(mountpoint + "/"):
                    users.append(f"{process.info['name']} ({process.pid})")
                    break
    return f" by {', '.join(users[:5])}" if users else ""
