"""The data path: READ, WRITE, FALLOCATE, LSEEK and COPY_FILE_RANGE, answered on the wire.

Each request is a system call on the backing file and a line in the books, for the cgroup of the thread that asked (I9).
The daemon makes every allocation, so the kernel charges the pool (I2). Runs in the channel's request pump; the kernel
holds the inode's lock over a write, truncation or allocation, so a system call and its line in the books are not torn
apart by another one on the same file.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EINVAL, EIO, ENOSPC
from functools import partial

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.api.types import Engine
from sharedfs.common.lane import LONG_BYTES, Lane
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.device import Device
from sharedfs.fuse.protocol import BODY, Opcode
from sharedfs.fuse.relay import RequestHandler, Shortcut
from sharedfs.fuse.shortage import Shortage
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux import syscalls
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.ops import shortcut
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.growth import Growth
from sharedfs.pages.reaper import Reaper
from sharedfs.storage.fd_cache import Descriptors
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

try:
    from sharedfs.ops import fastpath
except ImportError:  # it is optional: no compiler at installation
    fastpath = None  # type: ignore[assignment]

PURE_PYTHON_VARIABLE = "SHAREDFS_PURE_PYTHON"

_REPLY_HEADER = wire.OUT_HEADER.size
_SLOW_THREADS = 4
# To seek over more than so many bytes is long work: the kernel walks each page, and 64 MiB take it 1 ms.
_LONG_SEEK_BYTES = 64 << 20
# A copy is answered in parts of this size; copy_file_range(2) may copy less than asked.
_COPY_BYTES = 2 << 20
# So often the page cache of a file in use may stay: 10 seconds.
_MOST_CALLS_PUT_OFF = 20
_LOOK_AGAIN_SECONDS = 0.0001


class DataPath:
    """The handlers for the channel, and what answers before them.

    `files` are the descriptors of the store's files and `callers` those of the threads that ask: both for the request
    pump's thread. `on_error` is told what broke long work.
    """

    def __init__(
        self,
        store: Store,
        files: Descriptors,
        books: Books,
        allocation: Allocation,
        growth: Growth,
        reaper: Reaper,
        callers: Callers,
        events: TaskEvents | None,
        device: Device,
        shortage: Shortage,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._files = files
        self._room = store.tmpfs.room
        self._pages = books.pages
        self._admission = books.admission
        self._changes = books.changes
        self._allocation = allocation
        self._growth = growth
        self._reaper = reaper
        self._callers = callers
        self._device = device
        self._shortage = shortage
        self._gate = threading.Lock()  # held over each change of content that is not the shortcut's, and by `quiet`
        self._engine = threading.Lock()
        self._distrusted = False
        self._reply_buffer = memoryview(bytearray(_REPLY_HEADER + wire.MAX_WRITE))
        self._slow_lane = Lane(_SLOW_THREADS, "allocate", on_error)
        # Files that the kernel made pages of its own for: since the last `drop_page_cache`; and for how many of its
        # calls they are waiting.
        self._cached_lately: set[int] = set()
        self._cached_calls: dict[int, int] = {}
        self._answered = dict.fromkeys(("read", "write", "fallocate", "lseek", "copy_file_range"), 0)
        self._fast = self._fast_path(events, books)

    @property
    def handlers(self) -> Mapping[int, RequestHandler]:
        return {
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            **dict.fromkeys(wire.COPIES, self._copy_file_range),
        }

    @property
    def requests(self) -> dict[str, int]:
        """How many requests were answered, by kind."""
        counts = dict(self._answered)
        if self._fast is not None:
            counts["read"] += self._fast.reads
            counts["write"] += self._fast.writes
            counts["getattr"] = self._fast.attributes
            counts["absent"] = self._fast.absent
        return counts

    @property
    def engine(self) -> Engine:
        return Engine.C if self._fast is not None and self._fast.enabled else Engine.PYTHON

    @property
    def shortcut(self) -> Shortcut | None:
        """What answers in C what it can; None where it was not built, or the kernel does not tell of tasks."""
        return self._fast

    def _fast_path(self, events: TaskEvents | None, books: Books) -> "fastpath.FastPath | None":
        if fastpath is None or events is None or os.environ.get(PURE_PYTHON_VARIABLE):
            return None
        return fastpath.FastPath(
            shortcut.given(self._device.fd, self._store, self._files.by_inode, self._callers, events, books)
        )

    def distrust_events(self) -> None:
        """Do without the task events from here on. From any thread."""
        with self._engine:
            self._distrusted = True
            if self._fast is not None:
                self._fast.enabled = 0
        self._callers.distrust_events()

    @contextmanager
    def quiet(self, seconds: float) -> Iterator[None]:
        """Files are read, written and punched by nobody else who asks us; requests wait. Not for the pump.

        Raises TimeoutError when that cannot be had within `seconds`.
        """
        deadline = time.monotonic() + seconds
        fast = self._fast
        try:
            if fast is not None:
                fast.enabled = 0
            if not self._gate.acquire(timeout=max(seconds, 0)):
                raise TimeoutError("requests were not answered in time")
            try:
                while fast is not None and fast.busy:
                    if time.monotonic() > deadline:
                        raise TimeoutError("a request was not answered in time")
                    time.sleep(_LOOK_AGAIN_SECONDS)
                yield
            finally:
                self._gate.release()
        finally:
            with self._engine:
                if fast is not None and not self._distrusted:
                    fast.enabled = 1

    def drop_page_cache(self) -> None:
        """Free the pages that the kernel made for sendfile(2) and the like. From one thread, not the pump.

        The kernel waits for a page that is being read just then, and if we are killed while it waits, that page's
        reader hangs until the connection is aborted. So it is done when nothing of the kind was asked since the last
        call, or when it was put off too often.
        """
        lately, self._cached_lately = self._cached_lately, set()
        for node in lately:
            self._cached_calls[node] = self._cached_calls.get(node, 0) + 1
        for node, calls in list(self._cached_calls.items()):
            if node not in lately or calls >= _MOST_CALLS_PUT_OFF:
                del self._cached_calls[node]
                self._device.drop_page_cache(node)

    def close(self) -> None:
        self._slow_lane.shutdown()
        self._files.make_room()
        self._callers.make_room()

    def _read(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        self._answered["read"] += 1
        _, offset, size, read_flags, flags = wire.READ_IN.unpack_from(request, BODY)
        known = self._store.node(node)
        if not read_flags & wire.READ_LOCKOWNER and self._device.passthrough:
            # sendfile(2), splice(2) or readahead(2), for FUSE's own page cache: a copy that does not see writes through
            # mappings, and that is charged to the tenant (I2). The pages that the kernel made for this would hold on to
            # the tenant's cgroup (I3), also when they stay empty because we refuse.
            self._cached_lately.add(node)
            if not known.still:
                raise OSError(EINVAL, os.strerror(EINVAL))
        fd = self._files.get(known)
        tenant = self._callers.tenant_of(thread_id) or self._callers.opener_of(node)
        buffer = self._reply_buffer
        place = [buffer[_REPLY_HEADER : _REPLY_HEADER + size]]
        with self._gate:
            length = (
                self._read_unnoticed(known, place, offset) if flags & os.O_NOATIME else os.preadv(fd, place, offset)
            )
        if length:
            self._pages.touch(node, offset, offset + length, tenant)
        self._device.reply_in_place(unique, buffer, length)

    def _read_unnoticed(self, node: Node, place: list[memoryview], offset: int) -> int:
        """With O_NOATIME, which the descriptor that serves all others has not."""
        with self._store.opened(node, os.O_RDONLY | os.O_NOATIME) as fd:
            return os.preadv(fd, place, offset)

    def _write(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        self._answered["write"] += 1
        _, offset, size, write_flags = wire.WRITE_IN.unpack_from(request, BODY)
        known = self._store.node(node)
        fd = self._files.get(known)
        tenant = self._callers.tenant_of(thread_id) or self._callers.opener_of(node)
        if write_flags & wire.WRITE_KILL_SUIDGID and known.set_id:
            drop_set_id(fd)
            known.set_id = False
        start = wire.WRITE_DATA_OFFSET
        content, old_size = request[start : start + size], os.fstat(fd).st_size
        gap_bytes = self._growth.gap_bytes(known, old_size, offset, offset + size)
        if gap_bytes:
            work = partial(self._write_behind_gap, known, old_size, offset, bytes(content), tenant)
            self._in_a_lane(gap_bytes, unique, tenant, request, work)
            return
        with self._admission.admitted(node, offset, offset + size, tenant):
            while True:
                with self._gate:
                    length = self._pwrite(fd, content, offset)
                if length == size or not self._shortage.give_way(request):
                    break
            if length:
                self._pages.charge(node, offset, offset + length, tenant)
        self._device.reply(unique, 0, wire.WRITE_OUT.pack(length, 0))

    def _write_behind_gap(self, node: Node, old_size: int, offset: int, content: bytes, tenant: TenantId) -> bytes:
        end = offset + len(content)
        with self._store.opened(node, os.O_RDWR) as fd, self._admission.admitted(node.inode, offset, end, tenant):
            self._growth.fill_gap(node, old_size, offset, end, tenant)
            try:
                with self._gate:
                    length = self._pwrite(fd, content, offset)
            except OSError:
                self._growth.empty_gap(node, old_size, offset)
                raise
            self._pages.charge(node.inode, offset, offset + length, tenant)
        return wire.WRITE_OUT.pack(length, 0)

    def _pwrite(self, fd: int, content: bytes | memoryview, offset: int) -> int:
        """As pwrite(2), within the pool's room."""
        self._room.permit(len(content))
        try:
            return os.pwrite(fd, content, offset)
        except OSError as error:
            if error.errno != ENOSPC or not self._room.grew():
                raise
        return os.pwrite(fd, content, offset)

    def _fallocate(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        self._answered["fallocate"] += 1
        _, offset, length, mode = wire.FALLOCATE_IN.unpack_from(request, BODY)
        # The caller is asked for now, while its thread surely waits for this answer.
        tenant = self._callers.tenant_of(thread_id)
        new_bytes = length + self._gap_before(self._store.node(node), mode, offset, length)
        allocate = self._allocate if new_bytes <= LONG_BYTES else self._allocate_slowly
        self._in_a_lane(new_bytes, unique, tenant, request, partial(allocate, node, mode, offset, length, tenant))

    def _gap_before(self, node: Node, mode: int, offset: int, length: int) -> int:
        if mode:  # which leaves the size, or adds nothing
            return 0
        with self._store.lock:
            size = self._store.stat(node).st_size
        return self._growth.gap_bytes(node, size, offset, offset + length)

    def _in_a_lane(
        self, new_bytes: int, unique: int, tenant: TenantId, request: memoryview, work: Callable[[], bytes]
    ) -> None:
        """Do `work`, which gives the answer: at once, or beside the pump where it makes so much that it takes long."""
        if new_bytes <= LONG_BYTES:
            self._device.reply(unique, 0, work())
        else:
            self._beside_the_pump(unique, tenant, request, work)

    def _beside_the_pump(self, unique: int, tenant: TenantId, request: memoryview, work: Callable[[], bytes]) -> None:
        kept = memoryview(bytes(request[: wire.WRITE_DATA_OFFSET]))
        self._slow_lane.submit(tenant, partial(self._answer, unique, kept, work))

    def _answer(self, unique: int, request: memoryview, work: Callable[[], bytes]) -> None:
        """Do `work` in the slow lane, again as long as unclaimed files give way to it, and answer with its outcome."""
        try:
            while True:
                try:
                    body = self._reaper.with_space(work)
                    break
                except OSError as error:
                    if error.errno != ENOSPC:
                        raise
                    if not self._shortage.give_way(request):
                        self._shortage.found_none()
                        raise
        except OSError as error:
            self._device.reply(unique, error.errno or EIO)
        else:
            self._device.reply(unique, 0, body)

    def _allocate(self, node: int, mode: int, offset: int, length: int, tenant: TenantId) -> bytes:
        known = self._store.node(node)
        if mode & syscalls.FALLOC_FL_PUNCH_HOLE:
            with self._gate:
                self._allocation.punch(known, mode, offset, offset + length)
        else:  # what only adds pages may take long, and disturbs nobody who moves one
            end = offset + length
            with self._store.lock:
                old_size = self._store.stat(known).st_size
            with self._admission.admitted(node, offset, end, tenant):
                self._allocation.allocate(known, mode, offset, end, tenant)
            if not mode:
                self._growth.fill_gap(known, old_size, offset, end, tenant)
        return b""

    def _allocate_slowly(self, node: int, mode: int, offset: int, length: int, tenant: TenantId) -> bytes:
        if not mode & syscalls.FALLOC_FL_PUNCH_HOLE:
            return self._allocate(node, mode, offset, length, tenant)
        with self._store.lock:
            known = self._store.node(node)
            self._changes.begin_shrinking(node)
        try:
            self._allocation.punch(known, mode, offset, offset + length)
        finally:
            self._changes.end_shrinking(node)
        return b""

    def _lseek(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        """SEEK_DATA and SEEK_HOLE; the kernel answers the others.

        The tmpfs holds the file's lock over its walk. FUSE has had its own one of that file since before the request,
        so no other request that needs the tmpfs's lock comes meanwhile.
        """
        self._answered["lseek"] += 1
        _, offset, whence = wire.LSEEK_IN.unpack_from(request, BODY)
        known = self._store.node(node)
        fd = self._files.get(known)
        if os.fstat(fd).st_size - offset <= _LONG_SEEK_BYTES:
            self._device.reply(unique, 0, wire.LSEEK_OUT.pack(os.lseek(fd, offset, whence)))
        else:
            work = partial(self._seek_slowly, known, offset, whence)
            self._beside_the_pump(unique, self._callers.tenant_of(thread_id), request, work)

    def _seek_slowly(self, node: Node, offset: int, whence: int) -> bytes:
        with self._store.opened(node) as fd:
            return wire.LSEEK_OUT.pack(os.lseek(fd, offset, whence))

    def _copy_file_range(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        self._answered["copy_file_range"] += 1
        _, source_offset, target, _, target_offset, length, _ = wire.COPY_FILE_RANGE_IN.unpack_from(request, BODY)
        source_fd, target_fd = (self._files.get(self._store.node(inode)) for inode in (node, target))
        tenant = self._callers.tenant_of(thread_id)
        length = max(0, min(length, _COPY_BYTES, os.fstat(source_fd).st_size - source_offset))
        known, old_size, end = self._store.node(target), os.fstat(target_fd).st_size, target_offset + length
        gap_bytes = self._growth.gap_bytes(known, old_size, target_offset, end) if length else 0
        if gap_bytes:
            content = os.pread(source_fd, length, source_offset)
            self._pages.touch(node, source_offset, source_offset + length, tenant)
            work = partial(self._write_behind_gap, known, old_size, target_offset, content, tenant)
            self._in_a_lane(gap_bytes, unique, tenant, request, work)
            return
        with self._admission.admitted(target, target_offset, end, tenant):
            self._room.permit(length)
            with self._gate:
                copied = os.copy_file_range(source_fd, target_fd, length, source_offset, target_offset)
            if copied:
                self._pages.touch(node, source_offset, source_offset + copied, tenant)
                self._pages.charge(target, target_offset, target_offset + copied, tenant)
        self._device.reply(unique, 0, wire.WRITE_OUT.pack(copied, 0))


def drop_set_id(fd: int) -> None:
    """What a write does to the set-id bits of a file whose writer may not keep them (set-gid stays without x)."""
    mode = os.fstat(fd).st_mode
    kept = mode & ~0o4000
    if mode & 0o010:
        kept &= ~0o2000
    if kept != mode:
        os.fchmod(fd, kept & 0o7777)
