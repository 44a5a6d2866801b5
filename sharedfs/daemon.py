"""The daemon: serves one pool. Puts the parts together, runs them in one nursery, and takes them apart again.

claim the name ─▶ join the pool's cgroup ─▶ store ─▶ mount ─▶ channel ─▶ pyfuse3, scans and feed in trio
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from errno import EINVAL
from functools import partial

import psutil
import pyfuse3
import trio

from sharedfs import places, pools
from sharedfs.books import Books
from sharedfs.callers import Callers
from sharedfs.datapath import DataPath
from sharedfs.errors import CallerMistake, HostFault
from sharedfs.feed_types import PoolRecord, PoolStatus
from sharedfs.frequent import FrequentRequests
from sharedfs.kernel import syscalls
from sharedfs.kernel.cgroups import find_memory_hierarchy
from sharedfs.kernel.channel import Channel
from sharedfs.kernel.fuse_wire import MAX_WRITE
from sharedfs.kernel.mount_flags import atime_attributes
from sharedfs.kernel.mounts import Mount, mount_at
from sharedfs.kernel.pagemap import PAGE_BYTES
from sharedfs.kernel.passthrough import BackingFiles
from sharedfs.kernel.task_events import TaskEvents
from sharedfs.mappings import MappingScan
from sharedfs.model.tenant_rules import TenantRules
from sharedfs.mount_options import (
    FILESYSTEM_TYPE,
    PoolOptions,
    check_changes,
    parse,
    setting_words,
    settings_of,
    shown_flags,
)
from sharedfs.namespace import Namespace
from sharedfs.pool_cgroup import PoolCgroup, join_pool_cgroup
from sharedfs.rare import RareRequests
from sharedfs.store import Store
from sharedfs.tmpfs import PrivateTmpfs
from sharedfs.units import format_size

log = logging.getLogger("sharedfs")

_INITIALISATION_SECONDS = 10.0
# A scan takes this part of our time, as far as a change of use can still be settled within two seconds.
_SCAN_SHARE = 0.05
_LONGEST_SCAN_PAUSE_SECONDS = 1.0


class Pool:
    """One served pool: its parts, and what the outside may ask of them."""

    def __init__(self, options: PoolOptions, cgroup: PoolCgroup, resources: ExitStack) -> None:
        self.options = options
        self.cgroup = cgroup
        self.books = Books(cgroup.hierarchy, PAGE_BYTES, TenantRules(options.tenant_rules))
        tmpfs = PrivateTmpfs(
            options.size_bytes,
            options.inodes,
            options.root_mode,
            (options.root_uid, options.root_gid),
            atime_attributes(options.flags),
        )
        self.store = Store(tmpfs)
        resources.callback(self.store.close)
        self.events = _task_events()
        if self.events is not None:
            resources.callback(self.events.close)
        self.data_path = DataPath(self.store, self.books, self.events)
        resources.callback(self.data_path.close)
        device_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        resources.callback(os.close, device_fd)
        self.backing = BackingFiles(device_fd)
        self._callers = Callers(self.books, self.events)
        self.namespace = Namespace(
            self.store,
            self.books,
            self.data_path,
            lambda: self.backing if self.channel.passthrough else None,
            lambda inode: self.channel.expire_attributes(inode),  # noqa: PLW0108 - the channel is made below
            options.reserve_bytes,
            self._callers,
            fast_reads=options.reads == "fast",
        )
        self.frequent = FrequentRequests(self.namespace)
        resources.callback(self.frequent.close)
        self.ended_by: BaseException | None = None
        self._end = trio.Event()
        self._trio_token: trio.lowlevel.TrioToken | None = None
        self.channel = Channel(
            device_fd,
            {**self.data_path.handlers, **self.frequent.handlers},
            self.data_path.tenant_of,
            want_passthrough=options.passthrough,
            on_end=self._on_channel_end,
        )
        self.data_path.connect(self.channel, device_fd)
        self.frequent.connect(self.channel)
        syscalls.mount(
            options.name,
            options.mountpoint,
            FILESYSTEM_TYPE,
            options.flags,
            f"fd={device_fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_WRITE}",
        )
        resources.callback(self._unmount)
        mount = mount_at(options.mountpoint)
        if mount is None:
            raise HostFault(f"{options.mountpoint} is not in /proc/self/mountinfo after mount(2)")
        self.mappings = MappingScan(self.books, mount.device)
        self._device = mount.device

    def _mount(self) -> Mount | None:
        """Our mount as the kernel shows it, None when it is gone. Its flags may be others than we mounted it with."""
        mount = mount_at(self.options.mountpoint)
        return mount if mount is not None and mount.device == self._device else None

    def _unmount(self) -> None:
        """Take our mount away, if it is still there; lazily, for tenants may be in it."""
        if self._mount() is not None:
            with suppress(OSError):
                syscalls.umount(self.options.mountpoint, syscalls.MNT_DETACH)

    def _on_channel_end(self, error: BaseException | None) -> None:
        """A pump ended (in its thread): so does the service."""
        self.ended_by = self.ended_by or error
        if self._trio_token is not None:
            with suppress(trio.RunFinishedError):
                self._trio_token.run_sync_soon(self._end.set)

    def status(self) -> PoolStatus:
        with self.books.lock:
            statistics = self.books.ledger.statistics()
            tenants = len(self.books.tenants)
        passthrough = self.channel.passthrough
        mount = self._mount()
        return PoolStatus(
            name=self.options.name,
            mountpoint=self.options.mountpoint,
            flags="" if mount is None else shown_flags(mount),
            settings=",".join(setting_words(settings_of(self.options))),
            daemon_pid=os.getpid(),
            size_bytes=self.options.size_bytes,
            resident_bytes=statistics.resident_bytes,
            foreign_bytes=statistics.foreign_bytes,
            tenants=tenants,
            files=statistics.files,
            data_path=f"{self.options.reads}+passthrough" if passthrough else "exact",
            engine=self.data_path.engine,
            mmap="shared mappings at memory speed" if passthrough else "no shared mappings (ENODEV): needs Linux 6.9",
            pool_cgroup=self.cgroup.path,
            sharing_classes=statistics.classes,
            ledger_bytes=statistics.memory_bytes,
            mapping_scans=self.mappings.scans,
            requests={**self.data_path.requests, "namespace": self.frequent.answered + self.channel.forwarded},
        )

    def reconfigure(self, words: str) -> None:
        """Change what mount options in `words` ask for, as far as it is not the kernel's to do. Bytes in use stay.

        Raises CallerMistake for what cannot be changed; nothing has changed then.
        """
        asked = parse(words, psutil.virtual_memory().total)
        check_changes(self.options, asked)
        changed = replace(self.options, **asked.settings, flags=asked.flags_on(self.options.flags))
        used_bytes = self.store.tmpfs.used_bytes()
        if changed.size_bytes < used_bytes:
            raise CallerMistake(
                f"size={format_size(changed.size_bytes)} is less than the {format_size(used_bytes)} in use: "
                "remove files first"
            )
        try:
            self.store.tmpfs.reconfigure(changed.size_bytes, changed.inodes, atime_attributes(changed.flags))
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise CallerMistake(
                "nr_inodes is less than there are, or bounds what had no bound: remove files, or mount anew"
            ) from error
        self.options = changed

    # -- the service -------------------------------------------------------------------------------------------------

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Serve until the mount is gone or a signal asks to stop. Raises what broke us."""
        self._trio_token = trio.lowlevel.current_trio_token()
        self.channel.start()
        pyfuse3.init(RareRequests(self.namespace), self.channel.libfuse_mountpoint, set())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_on_signal, name="signals")
                nursery.start_soon(pyfuse3.main, name="namespace")
                if not await trio.to_thread.run_sync(
                    self.channel.initialised.wait, _INITIALISATION_SECONDS, abandon_on_cancel=True
                ):
                    raise HostFault("the kernel did not start the FUSE connection")
                nursery.start_soon(self._keep_scanning, name="mappings")
                nursery.start_soon(self._keep_tenants, name="tenants")
                nursery.start_soon(self._keep_aging, name="aging")
                nursery.start_soon(self._keep_page_cache_empty, name="page cache")
                await nursery.start(self._serve_feed, name="feed")
                on_ready()
                await self._end.wait()
                pyfuse3.terminate()
                nursery.cancel_scope.cancel()
        finally:
            self._unmount()
            self.channel.close()
            pyfuse3.close(unmount=False)
        if self.ended_by is not None:
            raise self.ended_by

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("%s: leaving the mount", signal.Signals(number).name)
                self._unmount()
                self._end.set()

    async def _keep_scanning(self) -> None:
        while True:
            started = time.monotonic()
            seen = await trio.to_thread.run_sync(self.mappings.scan)
            self.mappings.apply(seen)
            took = time.monotonic() - started
            await trio.sleep(max(self.options.scan_seconds, min(took / _SCAN_SHARE, _LONGEST_SCAN_PAUSE_SECONDS)))

    async def _keep_tenants(self) -> None:
        """Exit whose cgroup is gone: its pages are the other users' from then on (I4)."""
        while True:
            self.books.exit(self.books.dead_tenants())
            if self.events is not None and not self.events.covers_all_cpus():
                log.warning("a CPU came or went: callers are looked up at each request from here on, which is slower")
                self.data_path.distrust_events()
                self._callers.distrust_events()
                self.events = None
            await trio.sleep(self.options.scan_seconds)

    async def _keep_aging(self) -> None:
        """A touch counts for one to two halves of the idle time, a mapping for as long as it lasts."""
        while True:
            await trio.sleep(self.options.idle_seconds / 2)
            with self.books.lock:
                self.books.ledger.age()

    async def _keep_page_cache_empty(self) -> None:
        """What the kernel caches for a tenant is charged to it, and would make a zombie of its cgroup (I3)."""
        while True:
            await trio.sleep(self.options.scan_seconds)
            await trio.to_thread.run_sync(self.data_path.drop_page_cache, abandon_on_cancel=True)

    async def _serve_feed(self, task_status: trio.TaskStatus[object]) -> None:
        from sharedfs.feed import make_feed  # noqa: PLC0415 - the slow import; the mount serves already
        from sharedfs.unix_http import serve_on_socket  # noqa: PLC0415

        app = make_feed(self.options.name, self.store, self.books, self.status, self.reconfigure)
        await serve_on_socket(app, places.feed_socket(self.options.name), task_status)


def _task_events() -> TaskEvents | None:
    try:
        return TaskEvents()
    except HostFault as fault:
        log.warning("callers are looked up at each request, which is slower: %s", fault)
        return None


@contextmanager
def pool(options: PoolOptions) -> Iterator[Pool]:
    """A mounted pool; everything is undone at the end, also when a part of the start fails."""
    with ExitStack() as resources:
        resources.callback(os.close, pools.claim(options.name))
        leave_no_trace = ExitStack()
        resources.enter_context(leave_no_trace)
        leave_no_trace.callback(pools.forget, options.name)
        cgroup = join_pool_cgroup(find_memory_hierarchy(), options.cgroup_parent, options.name)
        resources.callback(cgroup.leave)
        made = Pool(options, cgroup, resources)
        pools.write_record(
            PoolRecord(
                name=options.name,
                mountpoint=options.mountpoint,
                daemon_pid=os.getpid(),
                daemon_started=psutil.Process().create_time(),
                pool_cgroup=cgroup.path,
                removable_cgroups=cgroup.removable,
            )
        )
        os.umask(0)  # from here on we make files for tenants, and the kernel has applied theirs
        try:
            yield made
        except BaseException:
            if places.daemon_log(options.name).exists():
                leave_no_trace.pop_all()  # the log says why; `sharedfs umount` clears it away
            raise


def run(options: PoolOptions, on_ready: Callable[[], None]) -> None:
    """Serve a pool until it is unmounted."""
    with pool(options) as mounted:
        trio.run(partial(mounted.serve, on_ready))
