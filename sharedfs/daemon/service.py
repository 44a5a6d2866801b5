"""The daemon: serves one pool. Puts the parts together, runs them in one nursery, and takes them apart again.

descriptors from the keeper ─▶ books, store ─▶ what another daemon left ─▶ channel ─▶ pyfuse3, scans and feed in trio
"""

import logging
import mmap
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from typing import NoReturn

import pyfuse3
import trio

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Remembered
from sharedfs.api.http_server import serve_http
from sharedfs.common.command_line import EXIT_CALLER_MISTAKE, EXIT_OUR_FAILURE
from sharedfs.common.errors import CallerMistake, HostFault, first_error
from sharedfs.common.units import PAGE_BYTES
from sharedfs.daemon.feed import add_state_version, make_feed
from sharedfs.daemon.options_in_force import OptionsInForce
from sharedfs.daemon.own_mount import OwnMount
from sharedfs.daemon.ownership import Ownership
from sharedfs.daemon.parts import Given, build
from sharedfs.daemon.pool_status import StatusReader
from sharedfs.daemon.upkeep_parts import Watched, build_upkeep
from sharedfs.fuse import protocol as wire
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux import syscalls
from sharedfs.linux.cgroup_memory import CgroupMemory
from sharedfs.linux.mapping_events import MappingEvents
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.linux.mountinfo import mount_at
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.maintenance.tasks import Upkeep
from sharedfs.ops.pyfuse3_ops import RareRequests
from sharedfs.ops.recovery import recover
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.short_mappings import ShortMappings
from sharedfs.pages.spill import Spill
from sharedfs.pool import lock, schema, spill_directory
from sharedfs.pool.cgroup import NEVER_KILLED, oom_score_adj
from sharedfs.pool.handoff import HANDED_OVER, Start
from sharedfs.pool.options import PoolOptions
from sharedfs.pool.schema import Held, StateFile, Word
from sharedfs.storage.fault_injection import Faults, faults_of
from sharedfs.storage.in_hand import InHand
from sharedfs.storage.journal import Journal
from sharedfs.storage.room import Room
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tmpfs import PrivateTmpfs
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_INITIALISATION_SECONDS = 60.0  # which a busy host may take; requests are answered before that
# A thread that runs Python code lets another one run after this time: requests do not wait for scans. Python's is 5 ms.
_SWITCH_SECONDS = 0.0005
_NOTIFYING_SECONDS = 10.0  # which a notification may wait for the answers to tenants' requests
_LEAVING_SECONDS = 0.1  # which the request that is being answered may take; or it waits for what we hold
_LOG_FD = 2


class Pool:
    """One served pool: its parts, and what the outside may ask of them."""

    def __init__(self, start: Start, kept: Mapping[str, int], resources: ExitStack) -> None:
        self._start = start
        self._kept = kept
        self.ended_by: BaseException | None = None
        self._clean_up = False
        self._end = trio.Event()
        self._trio_token: trio.lowlevel.TrioToken | None = None
        schema.take_over(kept[Held.STATE])
        self.state = StateFiles(kept[Held.STATE])
        self.options = OptionsInForce(start, self.state)
        options = self.options.now()
        self.cgroup = start.pool_cgroup()
        self.books = Books(self.cgroup.hierarchy, PAGE_BYTES, TenantRules(options.tenant_rules), kept[Held.STATE])
        faults = faults_of(self.state)
        self._journal = Journal(self.state, faults)
        self.limits = MemoryLimits(self.cgroup.hierarchy, self.cgroup.path)
        self.store = _make_store(kept[Held.STORE], options.size_bytes, self.limits, self.state, self._journal)
        resources.callback(self.store.close)
        events = _task_events(resources)
        self.mount = OwnMount(options.mountpoint, self.state)
        self.looks = resources.enter_context(closing(ProcessLooks(self.books, self.mount.device)))
        self.spill = Spill(_spill_directory(options, kept), self.store, self.books)
        resources.callback(self._end_spill)
        self.in_hand = InHand(self.state)
        remembered = Remembered()
        given = self._given(events, faults, remembered)
        self.parts = build(given, resources)
        self.watch = build_upkeep(given, self.parts, self._watched(resources, remembered))
        self.upkeep = self._make_upkeep(events)
        if start.resumes:
            self.parts.giving_way.resume()
            self.watch.recharge.resume()
            self._resume()
            if faults is not None:
                faults.starts()

    def _beside_bytes(self) -> int:
        """Of a tmpfs that is not the pool's, at /tmp or /run: copies of spilled files, and the log."""
        return self.spill.tmpfs_bytes + syscalls.tmpfs_bytes(_LOG_FD)

    def _watched(self, resources: ExitStack, remembered: Remembered) -> Watched:
        memory = CgroupMemory(self.cgroup.hierarchy, self.cgroup.path)
        resources.callback(memory.close)
        short = ShortMappings(self.books, self._mapping_events(resources), remembered.last_of, self._on_end)
        resources.callback(short.close)
        return Watched(self.state, memory, self._beside_bytes, short)

    def _mapping_events(self, resources: ExitStack) -> MappingEvents | None:
        """Linux before 6.13 names the pool's own tmpfs and not the mount, of a file that is passed through."""
        found = os.fstat(self.store.mount_fd).st_dev
        try:
            events = MappingEvents([self.mount.device, (os.major(found), os.minor(found))])
        except HostFault as fault:
            log.warning("what is mapped for less than a scan is not seen: %s", fault)
            return None
        return resources.enter_context(closing(events))

    def _given(self, events: TaskEvents | None, faults: Faults | None, remembered: Remembered) -> Given:
        return Given(
            options=self.options.now,
            store=self.store,
            books=self.books,
            journal=self._journal,
            looks=self.looks,
            spill=self.spill,
            device_fd=self._kept[Held.DEVICE],
            on_end=self._on_end,
            events=events,
            faults=faults,
            in_hand=self.in_hand,
            on_init=lambda request: self.state.write(StateFile.INIT, request),
            restarts=self._start.restarts,
            pool_inode=self.cgroup.inode,
            remembered=remembered,
        )

    def _make_upkeep(self, events: TaskEvents | None) -> Upkeep:
        parts, watch = self.parts, self.watch
        return Upkeep(
            self.options.now,
            self.books,
            parts.data_path,
            parts.callers,
            events,
            parts.reconcile,
            watch.moved,
            watch.detached,
            watch.mappings,
            watch.swap,
            watch.recharge,
            parts.unclaimed,
            watch.pins,
            self.limits,
            self.store.tmpfs.room,
        )

    def _resume(self) -> None:
        """Take over a connection: what another daemon left undone is ended, what it did not answer is asked again."""
        journal = self._journal
        init_request = self.state.read(StateFile.INIT) or _init_in(journal.request)
        if not init_request:
            return  # the kernel's very first request was not read yet
        self.parts.channel.resume(init_request)
        if not self.parts.channel.resends:
            self.in_hand.take_over(memoryview(journal.request), self.parts.device.is_waiting)
        recover(
            self.parts.namespace, journal, self.parts.device.backing, self.parts.device.reply, died=self._start.died
        )
        if self.parts.channel.resends:
            self.parts.device.ask_again()
        else:
            self.parts.channel.answer_first(self.in_hand.waiting(self.parts.device.is_waiting))

    def _end_spill(self) -> None:
        """The copies of spilled files go with the pool; while it is mounted another daemon is to find them."""
        options = self.options.now()
        if mount_at(options.mountpoint) is None:
            self.spill.discard()
            if options.spill_directory and not self.spill.remove_directory(options.spill_directory, options.name):
                log.warning("%s/%s stays: it is not empty, or not there", options.spill_directory, options.name)
        self.spill.close()

    def _on_end(self, error: BaseException | None) -> None:
        """A pump ended (in its thread): so does the service."""
        self.ended_by = self.ended_by or error
        if self._trio_token is not None:
            with suppress(trio.RunFinishedError):
                self._trio_token.run_sync_soon(self._end.set)

    # -- the service -------------------------------------------------------------------------------------------------

    async def serve(self, keeper: socket.socket) -> None:
        """Serve until the mount is gone or the keeper says so, which is told when we do.

        What breaks us before anybody was served is raised. What does later must not end the mount: we die of it, and
        another daemon takes over.
        """
        served = self._start.resumes
        self._trio_token = trio.lowlevel.current_trio_token()
        self.parts.channel.start()
        self.parts.reaper.start()
        self.watch.mappings.short.start()
        pyfuse3.init(RareRequests(self.parts.namespace), self.parts.channel.libfuse_mountpoint, set())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, keeper, name="keeper")
                nursery.start_soon(pyfuse3.main, name="namespace")
                await self._wait_for_kernel()
                self.upkeep.start(nursery)
                await nursery.start(self._serve_feed, name="feed")
                keeper.send(Word.SERVING.message())
                served = True
                await self._wait_for_end()
                pyfuse3.terminate()
                nursery.cancel_scope.cancel()
        except BaseException:
            if served:
                log.exception("the daemon broke")
                self._die()
            raise
        finally:
            self.parts.channel.close()
            pyfuse3.close(unmount=False)

    async def _wait_for_kernel(self) -> None:
        if not await trio.to_thread.run_sync(
            self.parts.channel.initialised.wait, _INITIALISATION_SECONDS, abandon_on_cancel=True
        ):
            raise HostFault("the kernel did not start the FUSE connection")

    async def _wait_for_end(self) -> None:
        """Raises what broke a pump, if that was the end."""
        await self._end.wait()
        if self.ended_by is not None:
            raise self.ended_by

    async def _obey(self, keeper: socket.socket) -> None:
        """Until the keeper says, by a word or by dying, that this daemon is to end."""
        while True:
            await trio.lowlevel.wait_readable(keeper)
            message = keeper.recv(64)
            if schema.is_hand_over(message) or (not message and self._start.outlives_keeper):
                self._hand_over(schema.asked_version(message))
            if not message:
                log.error("the keeper has died: leaving the mount")
                self._clean_up = True
            if message in (b"", Word.END.message()):
                break
            log.warning("the keeper says what this version does not know: %r", message)
        self.mount.unmount()
        self._end.set()

    def _hand_over(self, version: int | None) -> None:
        """Go between two requests. What is under way all the same our successor ends, as if we had been killed."""
        log.info("handing over")
        self.parts.device.notify_no_more(_NOTIFYING_SECONDS)
        with self.parts.namespace.lock, self.books.at_rest():
            self.parts.channel.leave(_LEAVING_SECONDS)
            self._leave(version)
            logging.shutdown()
            self.parts.device.answer_no_more(_LEAVING_SECONDS)
            os._exit(HANDED_OVER)

    def _leave(self, version: int | None) -> None:
        """Make the state what a daemon of `version` reads. None: of any, for the keeper is of one that cannot tell."""
        if version == schema.VERSION:
            return
        try:
            self.books.write_whole()
            if version is not None:
                schema.mark(self._kept[Held.STATE], version)
        except (HostFault, OSError):
            log.exception("the state stays as version %d writes it", schema.VERSION)

    def _die(self) -> NoReturn:
        """As if we were killed: nothing is taken apart, and our successor finds what it has to know."""
        logging.shutdown()
        os._exit(EXIT_OUR_FAILURE)

    def clean_up_for_keeper(self) -> None:
        """The keeper has died, so we leave the host as it would have."""
        if self._clean_up:
            self.looks.close()  # its child is in the pool's cgroup
            self.cgroup.leave()
            lock.forget(self.options.now().name)

    async def _serve_feed(self, task_status: trio.TaskStatus[object]) -> None:
        options = self.options.now()
        status = StatusReader(
            self._start,
            self.options.now,
            self.mount,
            self.cgroup.path,
            self.limits,
            self.books,
            self.store,
            self.looks,
            self.spill,
            self.parts,
            self.watch,
        )
        app = make_feed(
            options.name,
            self.store,
            self.books,
            status.read,
            lambda words: self.options.change(words, self.store.tmpfs),
            self.parts.unclaimed.listing,
            Ownership(self.store, self.books),
            self.watch.audit,
        )
        add_state_version(app, self._kept[Held.STATE])
        await serve_http(app, socket.socket(fileno=os.dup(self._kept[Held.FEED])), task_status=task_status)


def _make_store(fd: int, size_bytes: int, limits: MemoryLimits, state: StateFiles, journal: Journal) -> Store:
    return Store(PrivateTmpfs(fd, Room(fd, size_bytes, limits)), state, journal)


def _say_what_is_missing(limits: MemoryLimits) -> None:
    if oom_score_adj() > NEVER_KILLED:
        log.warning("the kernel may kill this pool when memory is short: its processes lack CAP_SYS_RESOURCE")
    if limits.hides_some:
        log.warning("limits of memory above are not visible: the kernel may kill this pool at one of them")


def _spill_directory(options: PoolOptions, kept: Mapping[str, int]) -> int | None:
    """The pool's own directory for spilled files. A keeper of an earlier version does not hold it."""
    if not options.spill_directory:
        return None
    return kept.get(Held.SPILL) or spill_directory.open_or_make(options.spill_directory, options.name)


def _init_in(last_read: mmap.mmap) -> bytes:
    """The kernel's INIT request, when a daemon read it and died before it was noted."""
    length, opcode, *_ = wire.IN_HEADER.unpack_from(last_read)
    return last_read[:length] if opcode == wire.Opcode.INIT else b""


def _task_events(resources: ExitStack) -> TaskEvents | None:
    try:
        return resources.enter_context(closing(TaskEvents()))
    except HostFault as fault:
        log.warning("callers are looked up at each request, which is slower: %s", fault)
        return None


def run(start: Start, kept: Mapping[str, int], keeper: socket.socket) -> int:
    """Serve a pool until it is unmounted or another daemon is to do so; the exit code.

    The keeper is told what went wrong. What we did not foresee goes to the log as it is.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    os.umask(0)  # from here on we make files for tenants, and the kernel has applied theirs
    keeper.send(Word.PID.message(str(os.getpid())))
    try:
        with ExitStack() as resources:
            pool = Pool(start, kept, resources)
            if start.restarts == 0:
                _say_what_is_missing(pool.limits)
            resources.callback(pool.clean_up_for_keeper)
            trio.run(pool.serve, keeper)
    except BaseException as error:
        cause = first_error(error)
        if not isinstance(cause, (CallerMistake, HostFault, OSError)):
            raise
        if start.resumes or isinstance(cause, OSError):  # else all is said in the line that the keeper shows
            log.exception("the pool cannot be served")
        code = EXIT_CALLER_MISTAKE if isinstance(cause, CallerMistake) else EXIT_OUR_FAILURE
        keeper.send(Word.FAILED.message(f"{code} sharedfs: {' '.join(str(cause).split())}"))
        return code
    return 0
