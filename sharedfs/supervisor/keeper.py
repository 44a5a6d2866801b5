"""The keeper: holds what a pool must not lose, and starts the daemon again when it dies.

It opens /dev/fuse, makes the private tmpfs of the data and one of the state, mounts, and then only waits. A connection
lives as long as somebody holds its descriptor, and so does a tmpfs that is mounted nowhere: the daemon may die at any
time, requests wait for its successor.

    keeper ──▶ spare: has imported everything, forks  ──▶ daemon: serves
       ▲  └──── SIGCHLD, end of the link ◀────────────────────┘

A daemon that died is followed by another at once, and later and later if they die young; after MOST_FAILURES in a row
the keeper gives up: it unmounts and ends, which aborts the connection, so that nobody hangs. Under a service manager
that keeps descriptors (see `supervisor/fd_store.py`) the keeper may die, too.

It must never hold or touch a file of the mount: the kernel would ask the daemon, which only we can start. And it
imports little, for it stays in memory.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from sharedfs.api.unix_listener import listen_at
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.fuse.protocol import MAX_WRITE
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.huge_pages import ADVISE, NEVER
from sharedfs.linux.mount_flags import atime_attributes
from sharedfs.linux.mountinfo import mount_at
from sharedfs.linux.service_manager import ServiceManager
from sharedfs.pool import lock, schema, spill_directory
from sharedfs.pool.cgroup import PoolCgroup, be_never_killed, join_pool_cgroup
from sharedfs.pool.handoff import HANDED_OVER, Start
from sharedfs.pool.options import FILESYSTEM_TYPE, PoolOptions, parse, written
from sharedfs.storage import fault_injection
from sharedfs.storage.room import check_room
from sharedfs.storage.tmpfs import make_state, make_tmpfs
from sharedfs.supervisor.fd_store import exec_with, received

log = logging.getLogger("sharedfs.supervisor.keeper")

MOST_FAILURES = 10
_LONGEST_DELAY_SECONDS = 1.0
_FIRST_DELAY_SECONDS = 0.1  # of the third restart in a row: the first two are at once
_HEALTHY_SECONDS = 1.0  # who served this long was no failure
_END_SECONDS = 15.0
_LEFTOVER_SECONDS, _POLL_SECONDS = 1.0, 0.002
_MESSAGE_BYTES = 64 << 10


@dataclass(eq=False)
class _Child:
    """A process that is a child of ours, or becomes one: its end of the link is closed when it dies."""

    link: socket.socket
    process_id: int = 0
    serves_since: float | None = None
    failure: tuple[int, str] | None = None
    reads: tuple[int, ...] | None = None
    """Of a spare that is ready: the versions of the state that its daemons can continue."""


@dataclass
class Keeper:
    """One pool's. `run` returns the exit code."""

    options: PoolOptions
    ready_fd: int | None
    manager: ServiceManager
    descriptors: dict[str, int]
    was_served: bool
    """Whether the descriptors are those of a pool that was served before."""
    cgroup: PoolCgroup
    log_fd: int | None
    """Where the daemon is to write instead of to our standard error."""
    restarts: int = 0
    reloads: int = 0
    _daemon_died: bool = False
    """Whether the last daemon ended without having been told to."""
    _failures: int = 0
    _spare: _Child | None = None
    _next_spare: _Child | None = None
    _reload_again: bool = False
    _daemon: _Child | None = None
    _start_at: float | None = None
    _kill_at: float | None = None
    _ending: bool = False
    _stays: bool = False
    _code: int | None = None
    _signals: socket.socket = field(init=False)

    def run(self) -> int:
        self._signals, wakeup = socket.socketpair()
        for end in (self._signals, wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        syscalls.become_subreaper()
        self._spare = self._start_spare()
        self._start_daemon()
        try:
            while self._code is None:
                self._wait()
        finally:
            self._end_children()
        return self._code

    @property
    def keeps_mount(self) -> bool:
        """Whether the mount is to stay although we end: another keeper gets its descriptors."""
        return self._stays

    # -- one turn ----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        children = {child.link.fileno(): child for child in (self._spare, self._next_spare, self._daemon) if child}
        for fd in (self._signals.fileno(), *children):
            poll.register(fd, select.POLLIN)
        deadlines = [moment for moment in (self._start_at, self._kill_at) if moment is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) * 1000 if deadlines else None
        for fd, _ in poll.poll(timeout):
            if self._code is not None:
                return
            if fd == self._signals.fileno():
                self._obey(self._signals.recv(64))
            elif children[fd] in (self._spare, self._next_spare, self._daemon):  # not ended by what was heard just now
                self._hear(children[fd])
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at:
            self._start_daemon()
        if self._kill_at is not None and now >= self._kill_at:
            log.error("the daemon does not end: killing it")
            self._kill_at = None
            if self._daemon is not None and self._daemon.process_id:
                with suppress(ProcessLookupError):
                    os.kill(self._daemon.process_id, signal.SIGKILL)
            elif self._spare is not None:  # the spare has not forked it yet
                self._end_spare(self._spare)
                self._spare = None

    def _obey(self, signals: bytes) -> None:
        for number in signals:
            if number == signal.SIGHUP:
                log.info("SIGHUP: the installed version takes over")
                if self._next_spare is None:
                    self._next_spare = self._start_spare()
                else:  # what is starting may be a version that was replaced since
                    self._reload_again = True
            elif number in (signal.SIGTERM, signal.SIGINT) and not self._ending:
                self._stays = self.manager.keeps and number == signal.SIGTERM and self._is_mounted()
                log.info("%s: %s", signal.Signals(number).name, "handing over" if self._stays else "leaving the mount")
                self._ending, self._kill_at = True, time.monotonic() + _END_SECONDS
                if self._daemon is None:
                    self._code = 0
                else:
                    self._tell(self._daemon, b"hand over" if self._stays else b"end")

    def _tell(self, child: _Child, message: bytes) -> None:
        with suppress(ConnectionError):  # it died just now, which we are about to hear
            child.link.send(message)

    def _hear(self, child: _Child) -> None:
        try:
            message = child.link.recv(_MESSAGE_BYTES).decode()
        except ConnectionError:
            message = ""
        kind, _, rest = message.partition(" ")
        if child is self._daemon:
            match kind:
                case "pid":
                    child.process_id = int(rest)
                case "serving":
                    self._daemon_serves(child)
                case "failed":
                    code, _, text = rest.partition(" ")
                    child.failure = int(code), text
                case _:
                    self._daemon_ended(child)
        elif kind == "warm":
            child.reads = schema.read_by(rest)
            if child is self._next_spare:
                self._replace_daemon(child, child.reads)
        else:
            self._spare_ended(child)

    # -- the daemon --------------------------------------------------------------------------------------------------

    def _start_daemon(self) -> None:
        self._start_at = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = Start(
            options=written(self.options),
            mountpoint=self.options.mountpoint,
            name=self.options.name,
            resumes=self.was_served,
            restarts=self.restarts,
            keeper_pid=os.getpid(),
            outlives_keeper=self.manager.keeps,
            cgroup=self.cgroup.path,
            came_from=self.cgroup.came_from,
            removable=self.cgroup.removable,
            died=self._daemon_died,
            reloads=self.reloads,
        )
        self._daemon = _Child(ours)
        with theirs, suppress(ConnectionError):  # a spare that died is replaced, and then this daemon has ended, too
            if self._spare is not None:
                socket.send_fds(self._spare.link, [start.message()], [theirs.fileno()])

    def _daemon_serves(self, child: _Child) -> None:
        child.serves_since = time.monotonic()
        self.was_served = True
        if self.ready_fd is not None:
            for stream in (1, 2):  # nobody reads them from here on
                if self.log_fd is not None:
                    os.dup2(self.log_fd, stream)
            os.write(self.ready_fd, b"\n")
            os.close(self.ready_fd)
            self.ready_fd = None
        self.manager.tell(f"READY=1\nSTATUS=Serving {self.options.mountpoint}, {self.restarts} restarts")

    def _daemon_ended(self, child: _Child) -> None:
        child.link.close()
        self._daemon = self._kill_at = None
        status = self._status_of(child)
        if self._next_spare is not None and self._next_spare.reads is not None:
            self._replace_daemon(self._next_spare, self._next_spare.reads)
        self._end_leftovers()
        if status == 0 or self._ending or self._is_over():
            self._code = 0
        elif child.serves_since is None and not self.was_served:
            self._code, text = child.failure or (1, f"sharedfs: the daemon could not start ({status})")
            print(text, file=sys.stderr)
        else:
            self._restart(child, status)

    def _restart(self, child: _Child, status: int | None) -> None:
        served = 0.0 if child.serves_since is None else time.monotonic() - child.serves_since
        how = "ended" if status is None else f"ended with {status}"
        healthy_seconds = 0.0 if os.environ.get(fault_injection.VARIABLE) else _HEALTHY_SECONDS
        self._failures = 1 if served > healthy_seconds else self._failures + 1
        self._daemon_died = status != HANDED_OVER
        if not self._daemon_died:
            self._failures = 0
        if self._failures >= MOST_FAILURES:
            log.error("%d daemons in a row died young: giving up, the files of this pool are lost", MOST_FAILURES)
            self._code = 1
            return
        delay = 0.0
        if self._failures > 2:
            delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (self._failures - 3))
        self.restarts += 1
        log.warning("the daemon %s after %.1f s: restart %d, in %.1f s", how, served, self.restarts, delay)
        self._start_at = time.monotonic() + delay

    def _status_of(self, child: _Child) -> int | None:
        """The exit code of a child that has closed its link; a negative signal number; None when it cannot be told."""
        if not child.process_id:
            return None
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child.process_id, 0)[1])
        except ChildProcessError:
            return None

    def _end_leftovers(self) -> None:
        """A daemon that was killed leaves the child that looks at processes (`linux/looker.py`), perhaps for ever."""
        left = {
            process_id
            for process_id in self.cgroup.hierarchy.processes(self.cgroup.path)
            if _is_looker_of_ours(process_id)
        }
        for process_id in left:
            os.kill(process_id, signal.SIGKILL)  # our child, so the id is no other's
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        while left and time.monotonic() < deadline:
            left -= {process_id for process_id in left if os.waitpid(process_id, os.WNOHANG)[0]}
            time.sleep(_POLL_SECONDS)

    def _is_over(self) -> bool:
        """Whether the connection is: the mount was taken away while no daemon lived."""
        poll = select.poll()
        poll.register(self.descriptors["device"], 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def _is_mounted(self) -> bool:
        mount = mount_at(self.options.mountpoint)
        return mount is not None and mount.kind == FILESYSTEM_TYPE

    # -- the spare ---------------------------------------------------------------------------------------------------

    def _start_spare(self) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = {**self.descriptors, "keeper": theirs.fileno()}
        process_id = os.fork()
        if process_id == 0:
            try:
                os.setpgid(0, 0)  # a terminal's signals are for the keeper
                for stream in (1, 2):
                    if self.log_fd is not None:
                        os.dup2(self.log_fd, stream)
                exec_with(descriptors, [sys.executable, "-m", schema.SPARE_MODULE], os.environ)
            finally:
                os._exit(127)
        theirs.close()
        return _Child(ours, process_id)

    def _spare_ended(self, child: _Child) -> None:
        child.link.close()
        status = self._status_of(child)
        if child is self._next_spare:
            log.error("the installed version does not start (%s): the old one goes on", status)
            self._next_spare = None
            self._begin_reload_again()
        elif self._daemon is not None and not self.was_served:
            self._code = 1  # it has said why
        else:
            log.warning("the spare process ended with %s: another one is started", status)
            time.sleep(_FIRST_DELAY_SECONDS)  # bounds what a broken installation costs
            self._spare = self._start_spare()

    def _replace_daemon(self, spare: _Child, reads: tuple[int, ...]) -> None:
        """The installed version is ready: let the daemon end between two requests, and leave what that version reads.

        The spare of the version before is kept until then: what a daemon that dies leaves, only its like may read.
        """
        kept = schema.kept_in(self.descriptors["state"])
        version = kept.for_reader(reads)
        if version is None:
            log.error("%s; the old one goes on", kept.refusal(reads))
            self._drop(spare)
        elif version == kept.version:
            self._swap(spare)
        elif self._daemon is None:
            log.error("no daemon is there to leave the state in version %d: the old one goes on; reload again", version)
            self._drop(spare)
        else:
            log.info("the daemon is to leave the state in version %d", version)
        if self._daemon is not None and version is not None:
            self._tell(self._daemon, schema.hand_over(kept, version))
        self._begin_reload_again()

    def _drop(self, spare: _Child) -> None:
        self._end_spare(spare)
        self._next_spare = None

    def _swap(self, spare: _Child) -> None:
        if self._spare is not None:
            self._end_spare(self._spare)
        self._spare, self._next_spare = spare, None
        self.reloads += 1

    def _begin_reload_again(self) -> None:
        if self._reload_again and self._next_spare is None:
            self._reload_again, self._next_spare = False, self._start_spare()

    def _end_spare(self, child: _Child) -> None:
        """By force: it holds nothing of its own, and may be stopped or busy. A daemon that it was to fork is missed."""
        child.link.close()
        with suppress(ProcessLookupError):
            os.kill(child.process_id, signal.SIGKILL)
        self._status_of(child)

    def _end_children(self) -> None:
        for spare in (self._spare, self._next_spare):
            if spare is not None:
                self._end_spare(spare)
        if self._daemon is not None:
            self._daemon.link.close()  # which tells it that the keeper is gone
            self._status_of(self._daemon)
        self._end_leftovers()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _is_looker_of_ours(process_id: int) -> bool:
    """Whether a process in the pool's cgroup looks at others, and its parent, now this process, does not live."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text(errors="replace")
        command = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"\nPPid:\t{os.getpid()}\n" in status and b"sharedfs" in command and b"looker" in command


# -- what a keeper holds -----------------------------------------------------------------------------------------------


def _make_descriptors(options: PoolOptions, lock_fd: int) -> tuple[dict[str, int], int]:
    """What a daemon needs to serve a new pool, and the descriptor that holds the mount of its tmpfs together."""
    owner = (options.root_uid, options.root_gid)
    atime = atime_attributes(options.flags)
    huge = None if options.huge == NEVER else ADVISE
    mount_fd, store_fd = make_tmpfs(options.size_bytes, options.inodes, options.root_mode, owner, atime, huge)
    spill = {}
    if options.spill_directory:
        spill["spill"] = spill_directory.open_or_make(options.spill_directory, options.name)
    return {
        **spill,
        "lock": lock_fd,
        "device": os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC),
        "store": store_fd,
        "state": make_state(),
        "feed": listen_at(paths.feed_socket(options.name)).detach(),
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
    draft = paths.pool_record(options.name).with_suffix(".new")
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
    was_served = "device" in descriptors
    if was_served:
        schema.check_left(descriptors["state"])  # nothing is touched: a keeper of another package can serve it
    with ExitStack() as resources:
        lock_fd = descriptors["lock"] if was_served else lock.claim(options.name)
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
            connection = f"fd={descriptors['device']},rootmode=40000,user_id=0,group_id=0"
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
        keeper = Keeper(options, ready_fd, manager, descriptors, was_served, cgroup, log_fd)
        code = keeper.run()
        if keeper.keeps_mount:
            unmount.pop_all()
            leave_cgroup.pop_all()
        if keeper.keeps_mount or (code and keeper.was_served):
            leave_no_trace.pop_all()  # the log says why; `sharedfs umount` clears it away
        elif code and log_fd is not None:
            sys.stderr.buffer.write(os.pread(log_fd, _MESSAGE_BYTES, 0))
    return code


def main(arguments: Sequence[str]) -> int:
    """`-m sharedfs.supervisor.keeper MOUNTPOINT NAME OPTIONS [READY-FD]`, after `sharedfs mount` has checked all."""
    mountpoint, name, words, *ready = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return keep(parse(words, 0).options(mountpoint, name, 0), int(ready[0]) if ready else None)
    except (CallerMistake, HostFault, OSError) as error:
        print(f"sharedfs: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, CallerMistake) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
