"""Daemons, one after the other: the keeper starts one, hears of its end, and has the spare fork the next.

A daemon that died is followed by another at once, and later and later if they die young; after MOST_FAILURES in a row
the keeper gives up. SIGHUP starts a spare of the installed version, which takes over once it is ready.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from sharedfs.linux import syscalls
from sharedfs.linux.mountinfo import mount_at
from sharedfs.linux.service_manager import ServiceManager
from sharedfs.pool import schema
from sharedfs.pool.cgroup import PoolCgroup
from sharedfs.pool.handoff import HANDED_OVER, Start
from sharedfs.pool.options import FILESYSTEM_TYPE, PoolOptions, written
from sharedfs.pool.schema import Held, Word
from sharedfs.storage import fault_injection
from sharedfs.supervisor.children import Child, end_leftovers, start_spare

log = logging.getLogger("sharedfs.supervisor.keeper")

MOST_FAILURES = 10
_LONGEST_DELAY_SECONDS = 1.0
_FIRST_DELAY_SECONDS = 0.1  # of the third restart in a row: the first two are at once
_HEALTHY_SECONDS = 1.0  # who served this long was no failure
_END_SECONDS = 15.0
_HALF_DEAD_SECONDS = 2.0  # between two looks at a daemon: what a thread does in the kernel takes less


@dataclass
class Daemons:
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
    _spare: Child | None = None
    _next_spare: Child | None = None
    _reload_again: bool = False
    _daemon: Child | None = None
    _start_at: float | None = None
    _kill_at: float | None = None
    _ending: bool = False
    _stays: bool = False
    _look_at: float = 0.0
    _half_dead: Child | None = None
    _to_be_reaped: set[int] = field(default_factory=set)
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
        self._spare = start_spare(self.descriptors, self.log_fd)
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
        if self._daemon is not None and self._daemon.process_id:
            deadlines.append(self._look_at)
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
                self._daemon.kill()
            elif self._spare is not None:  # the spare has not forked it yet
                self._spare.end_spare()
                self._spare = None
        if now >= self._look_at:
            self._look_at = now + _HALF_DEAD_SECONDS
            self._succeed_half_dead()

    def _succeed_half_dead(self) -> None:
        """Start another daemon when the rest of this one waits in the kernel at two looks.

        A notification waits for a tenant's request to be done, which only a successor can answer now. What else a
        thread may be about in the kernel ends by itself, or by the signal that ended the others.
        """
        daemon, before = self._daemon, self._half_dead
        self._half_dead = daemon if daemon is not None and daemon.is_half_dead() else None
        if daemon is not None and self._half_dead is daemon is before:
            log.warning("the daemon has died, and a thread of it waits in the kernel: it is not waited for")
            self._half_dead = None
            self._to_be_reaped.add(daemon.process_id)
            self._daemon_ended(daemon, is_gone=False)

    def _obey(self, signals: bytes) -> None:
        for number in signals:
            if number == signal.SIGCHLD:
                self._to_be_reaped = {child for child in self._to_be_reaped if not os.waitpid(child, os.WNOHANG)[0]}
            elif number == signal.SIGHUP:
                log.info("SIGHUP: the installed version takes over")
                if self._next_spare is None:
                    self._next_spare = start_spare(self.descriptors, self.log_fd)
                else:  # what is starting may be a version that was replaced since
                    self._reload_again = True
            elif number in (signal.SIGTERM, signal.SIGINT) and not self._ending:
                self._stays = self.manager.keeps and number == signal.SIGTERM and self._is_mounted()
                log.info("%s: %s", signal.Signals(number).name, "handing over" if self._stays else "leaving the mount")
                self._ending, self._kill_at = True, time.monotonic() + _END_SECONDS
                if self._daemon is None:
                    self._code = 0
                else:
                    self._daemon.tell(schema.hand_over() if self._stays else Word.END.message())

    def _hear(self, child: Child) -> None:
        heard = child.hear()
        word, _, rest = heard.partition(" ")
        match word:
            case "" if child is self._daemon:
                self._daemon_ended(child)
            case "":
                self._spare_ended(child)
            case Word.PID:
                child.process_id = int(rest)
            case Word.SERVING:
                self._daemon_serves(child)
            case Word.FAILED:
                code, _, text = rest.partition(" ")
                child.failure = int(code), text
            case Word.WARM:
                child.reads = schema.read_by(rest)
                if child is self._next_spare:
                    self._replace_daemon(child, child.reads)
            case _:
                log.warning("a child says what this version does not know: %r", heard)

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
        self._daemon = Child(ours)
        with theirs, suppress(ConnectionError):  # a spare that died is replaced, and then this daemon has ended, too
            if self._spare is not None:
                socket.send_fds(self._spare.link, [start.message()], [theirs.fileno()])

    def _daemon_serves(self, child: Child) -> None:
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

    def _daemon_ended(self, child: Child, *, is_gone: bool = True) -> None:
        child.link.close()
        self._daemon = self._kill_at = None
        status = child.status() if is_gone else None
        if self._next_spare is not None and self._next_spare.reads is not None:
            self._replace_daemon(self._next_spare, self._next_spare.reads)
        end_leftovers(self.cgroup)
        if status == 0 or self._ending or self._is_over():
            self._code = 0
        elif child.serves_since is None and not self.was_served:
            self._code, text = child.failure or (1, f"sharedfs: the daemon could not start ({status})")
            print(text, file=sys.stderr)
        else:
            self._restart(child, status)

    def _restart(self, child: Child, status: int | None) -> None:
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

    def _is_over(self) -> bool:
        """Whether the connection is: the mount was taken away while no daemon lived."""
        poll = select.poll()
        poll.register(self.descriptors[Held.DEVICE], 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def _is_mounted(self) -> bool:
        mount = mount_at(self.options.mountpoint)
        return mount is not None and mount.kind == FILESYSTEM_TYPE

    # -- the spare ---------------------------------------------------------------------------------------------------

    def _spare_ended(self, child: Child) -> None:
        child.link.close()
        status = child.status()
        if child is self._next_spare:
            log.error("the installed version does not start (%s): the old one goes on", status)
            self._next_spare = None
            self._begin_reload_again()
        elif self._daemon is not None and not self.was_served:
            self._code = 1  # it has said why
        else:
            log.warning("the spare process ended with %s: another one is started", status)
            time.sleep(_FIRST_DELAY_SECONDS)  # bounds what a broken installation costs
            self._spare = start_spare(self.descriptors, self.log_fd)

    def _replace_daemon(self, spare: Child, reads: tuple[int, ...]) -> None:
        """The installed version is ready: let the daemon end between two requests, and leave what that version reads.

        The spare of the version before is kept until then: what a daemon that dies leaves, only its like may read.
        """
        kept = schema.kept_in(self.descriptors[Held.STATE])
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
            self._daemon.tell(schema.hand_over(kept, version))
        self._begin_reload_again()

    def _drop(self, spare: Child) -> None:
        spare.end_spare()
        self._next_spare = None

    def _swap(self, spare: Child) -> None:
        if self._spare is not None:
            self._spare.end_spare()
        self._spare, self._next_spare = spare, None
        self.reloads += 1

    def _begin_reload_again(self) -> None:
        if self._reload_again and self._next_spare is None:
            self._reload_again, self._next_spare = False, start_spare(self.descriptors, self.log_fd)

    def _end_children(self) -> None:
        for spare in (self._spare, self._next_spare):
            if spare is not None:
                spare.end_spare()
        if self._daemon is not None:
            self._daemon.link.close()  # which tells it that the keeper is gone
            self._daemon.status()
        end_leftovers(self.cgroup)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
