"""The channel: our relay between /dev/fuse and pyfuse3.

pyfuse3 serves one end of a socket pair as if it were /dev/fuse. Two threads stand between the other end and the device:

    kernel ── /dev/fuse ──▶ request pump ──▶ handlers (data, frequent requests about names: answered in this thread)
                                       └──▶ socket ──▶ pyfuse3 (what is rare)
    kernel ◀── /dev/fuse ── reply pump ◀── socket ◀── pyfuse3

pyfuse3 hides the calling thread of a READ or WRITE, cannot turn on passthrough and is four thread wake-ups away; on the
wire all that is a few bytes.
The reply pump is a thread of its own because libfuse writes its replies with a blocking call from trio's thread: if
that thread were to drain them as well, replies beyond the socket's buffer would hang it for good.

The connection may be one that another daemon served before: libfuse is then given the kernel's INIT request of that
time again, and the kernel, which has its answer, ignores another one. What that daemon had read and not answered the
kernel sends again (Linux >= 6.9, `resends`); for earlier kernels it was kept (`InHand`) and is answered first.
"""

import contextlib
import logging
import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from errno import EAGAIN, EINTR, EINVAL, EIO, ENODEV, ENOENT
from functools import partial
from typing import Protocol

from sharedfs.common.errors import HostFault
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.device import Device, InHand
from sharedfs.fuse.fair_queue import FairQueue
from sharedfs.fuse.protocol import UNANSWERED, Opcode
from sharedfs.fuse.shortage import Shortage
from sharedfs.fuse.validation import fault_of

log = logging.getLogger("sharedfs")

_SO_SNDBUFFORCE = 32
_SOCKET_BUFFER_BYTES = 4 << 20  # one packet is one message, the longest (a batch of forgets) just over 1 MiB
_WAITING_BYTES = 64 << 20  # requests that the kernel has given us and that wait for their turn
_IN_ORDER = 2  # so few requests are answered as they came
_LEAVING_SECONDS = 0.0005  # between two looks whether the pump has stopped
_REPLY_PUMP_END_SECONDS = 5.0  # it has at most a socket's buffer left to write

RequestHandler = Callable[[int, int, int, memoryview], None]
"""Answers one request on the wire: (unique, node, thread_id, request). Runs in the request pump's thread.

`request` holds the whole message (header and body, the body from byte 40 on) and is reused for the next one.
`thread_id` is the calling thread, 0 when the kernel itself asks. Raises OSError to answer with its errno;
otherwise it has written its reply with `Device.reply` or will do so later. One that finds no descriptor or no space
left raises that before it has changed anything, and is asked again when `Shortage` has found some.
"""


class Shortcut(Protocol):
    """Answers on the wire, without us, requests that it knows how to. For the request pump's thread.

    Once it `leaves` it reads no more requests, and `rests` tells that it does not read or answer one just now.
    """

    leaves: int
    rests: int

    def next(self, request: bytearray | mmap.mmap, /) -> int:
        """Answer requests until one wants a handler, or many wait; it is in `request`. Its length. Raises OSError."""

    def serve(self, request: memoryview, /) -> bool:
        """Answer this request, or leave it untouched."""


def offers(init_in: memoryview, flag: int) -> bool:
    """Whether the kernel that sent this INIT request (its body) has what a flag above bit 31 stands for."""
    if len(init_in) < wire.INIT_IN.size:
        return False
    _, _, _, flags, flags2 = wire.INIT_IN.unpack_from(init_in)
    return bool(flags & wire.INIT_EXT and (flags | flags2 << 32) & flag)


class Channel:
    """One FUSE connection.

    `party_of(thread_id)` says who asks: when more requests wait than one, parties are served in turns. It is called in
    the request pump's thread, as handlers are. `shortcut` is asked before the handlers are.
    `on_end` is called from a pump's thread when that pump ends: with None at the end of the connection, else with what
    broke. When `initialised` is set, `device` knows what was agreed on with the kernel.
    """

    def __init__(
        self,
        device: Device,
        handlers: Mapping[int, RequestHandler],
        party_of: Callable[[int], Hashable],
        *,
        shortage: Shortage,
        shortcut: Shortcut | None = None,
        want_passthrough: bool,
        on_end: Callable[[BaseException | None], None],
        buffer: bytearray | mmap.mmap | None = None,
        on_init: Callable[[bytes], None] | None = None,
        on_turn: Callable[[int], None] = lambda _: None,
        in_hand: InHand | None = None,
        hidden_features: int = 0,
    ) -> None:
        """`buffer` is what requests are read into, one at a time; `on_init` is told the kernel's INIT request.

        `on_turn` is told the number of a request that is answered from elsewhere than `buffer`, and 0 afterwards.
        `hidden_features` are INIT flags that the kernel is taken not to have, for tests.
        """
        self._device = device
        self._device_ready = select.poll()
        self._device_ready.register(device.fd, select.POLLIN)
        self._party_of = party_of
        self._shortcut = shortcut
        self._shortage = shortage
        self._waits = shortage.waits
        self._handlers = handlers
        self._want_passthrough = want_passthrough
        self._on_end = on_end
        self._buffer = bytearray(wire.REQUEST_BYTES) if buffer is None else buffer
        self._on_init = on_init
        self._on_turn = on_turn
        self._keeps_in_hand = in_hand
        self._left: Sequence[bytes] = ()
        self._hidden_features = hidden_features
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BUFFER_BYTES)
        self._their_fd = theirs.detach()  # libfuse closes it
        self._closed = self._leaves = self._rests = False
        self._init_unique = 0  # of the INIT request, whose reply we edit
        self.initialised = threading.Event()
        self._maps_ids = False
        self.resends = False
        """Whether the kernel can send again what a daemon that died did not answer."""
        self.forwarded = 0
        self._requests, self._replies = (
            threading.Thread(target=self._guard, args=(pump,), name=pump.__name__.strip("_"), daemon=True)
            for pump in (self._request_pump, self._reply_pump)
        )

    @property
    def libfuse_mountpoint(self) -> str:
        """What to give pyfuse3.init as the mountpoint: libfuse takes /dev/fd/N as an already mounted connection."""
        return f"/dev/fd/{self._their_fd}"

    def start(self) -> None:
        self._requests.start()
        self._replies.start()

    def resume(self, init_request: bytes) -> None:
        """Before `start`, on a connection that was served before: go on with what was agreed on then."""
        self._forward_init(memoryview(init_request))

    def answer_first(self, requests: Sequence[bytes]) -> None:
        """Before `start`: requests that another daemon had in hand, from a kernel that does not send them again."""
        self._left = requests

    def close(self) -> None:
        """Let pyfuse3's end see the end, and the reply pump with it. The request pump ends with the next request.

        Tenants may go on asking until the connection is gone: nothing is answered from here on, and that is no error.
        """
        self._closed = True
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        if self._replies.ident is not None:
            self._replies.join(_REPLY_PUMP_END_SECONDS)
        self._ours.close()

    def leave(self, seconds: float) -> None:
        """The process is about to end: read no more requests, and wait so long until none is being answered.

        Hold what handlers wait for: who waits for that reads and writes nothing either.
        The kernel fails a request (EIO) when the process ends in the middle of a read(2) or write(2) of the device, and
        the page of memory is not found at once: often on User-Mode Linux, hardly ever elsewhere.
        """
        self._leaves = True
        if self._shortcut is not None:
            self._shortcut.leaves = 1
        deadline = time.monotonic() + seconds
        while self._requests.is_alive() and not self._has_stopped() and time.monotonic() < deadline:
            time.sleep(_LEAVING_SECONDS)

    def _has_stopped(self) -> bool:
        return self._rests if self._shortcut is None else bool(self._shortcut.rests)

    def _guard(self, pump: Callable[[], None]) -> None:
        try:
            pump()
        except BaseException as error:
            self._on_end(None if self._closed and isinstance(error, OSError) else error)
        else:
            self._on_end(None)

    def _request_pump(self) -> None:
        buffer = self._buffer
        view = memoryview(buffer)
        receive = self._receive if self._shortcut is None else self._shortcut.next
        for request in self._left:
            self._answer_kept(request)
        self._on_turn(0)
        self._left = ()
        while True:
            try:
                length = receive(buffer)
            except OSError as error:
                if error.errno in (ENOENT, EINTR):  # ENOENT: the request was interrupted before we read it
                    continue
                if error.errno == ENODEV:  # unmounted
                    return
                raise
            if self._device_ready.poll(0):
                self._answer_in_turns(buffer, length)
            else:
                self._answer(view[:length])
            if self._closed:
                return

    def _receive(self, buffer: bytearray | mmap.mmap) -> int:
        while True:
            while self._leaves:
                self._rests = True
                time.sleep(_LEAVING_SECONDS)
            try:
                return os.readv(self._device.fd, [buffer])
            except BlockingIOError:
                self._rests = True
                self._device_ready.poll()
                self._rests = False

    def _take(self, buffer: bytearray | mmap.mmap) -> int:
        """One more request that waits already; 0 for none. The end of the connection is left for `receive` to find."""
        if self._device_ready.poll(0) and not self._leaves:
            try:
                return os.readv(self._device.fd, [buffer])
            except OSError as error:
                if error.errno not in (EAGAIN, ENOENT, EINTR, ENODEV):
                    raise
        return 0

    def _answer_in_turns(self, buffer: bytearray | mmap.mmap, length: int) -> None:
        """More requests wait than one: take in all there are, and answer by turns of those who ask.

        `buffer` has the first one, and is used for others. Of two the first one is first, whoever asks.
        """
        taken = self._take_in(buffer, length, _WAITING_BYTES)
        if len(taken) <= _IN_ORDER:
            for request in taken:
                self._answer_kept(request)
            self._on_turn(0)
            return
        waiting: FairQueue[bytes] = FairQueue()
        free_bytes = _WAITING_BYTES
        while True:
            for request in taken:
                waiting.push(self._shortage.party(self._party_of, _thread(request)), request)
                free_bytes -= len(request)
            if not len(waiting):
                return
            request = waiting.pop()
            free_bytes += len(request)
            self._answer_kept(request)
            self._on_turn(0)
            taken = self._take_in(buffer, self._take(buffer), free_bytes) if len(waiting) else []

    def _take_in(self, buffer: bytearray | mmap.mmap, length: int, free_bytes: int) -> list[bytes]:
        """The requests that wait, from the one of `length` bytes in `buffer` on, until they fill `free_bytes`.

        What the kernel drops is forgotten at once: it does not wait for an answer, so it would be lost if we were
        killed before.
        """
        taken: list[bytes] = []
        view = memoryview(buffer)
        while length:
            if wire.IN_HEADER.unpack_from(buffer)[1] in wire.FORGETS:
                self._answer(view[:length])
            else:
                if self._device.in_hand is not None:
                    self._device.in_hand.keep(view[:length])
                taken.append(bytes(view[:length]))
                free_bytes -= length
            length = self._take(buffer) if free_bytes > 0 else 0
        return taken

    def _answer_kept(self, request: bytes) -> None:
        """One that is no more where requests are read into."""
        self._on_turn(_number(request))
        self._answer(memoryview(request))

    def _answer(self, request: memoryview) -> None:
        if self._closed:  # what the handlers work with may be gone
            return
        in_hand = self._device.in_hand
        if in_hand is None:
            if self._shortcut is None or not self._shortcut.serve(request):
                self._hand_out(request)
            return
        unique = _number(request)
        in_hand.begin(unique)
        if self._shortcut is not None and self._shortcut.serve(request):
            in_hand.answered(unique)
        else:
            self._hand_out(request)
        in_hand.end(request)

    def _hand_out(self, request: memoryview) -> None:
        if len(request) < wire.IN_HEADER.size:
            raise HostFault(f"the kernel sent a request of {len(request)} bytes")
        _, opcode, unique, node, _, _, thread_id, _, _ = wire.IN_HEADER.unpack_from(request)
        fault = fault_of(request)
        handler = self._handlers.get(opcode)
        if fault:
            self._refuse(opcode, unique, fault)
        elif handler is not None:
            before = self._waits.pieces
            try:
                try:
                    handler(unique, node, thread_id, request)
                except OSError as error:
                    self._shortage.after(error, before, partial(handler, unique, node, thread_id, request), request)
            except OSError as error:
                self._refuse(opcode, unique, error.errno or EIO)
            except OverflowError:  # a number on the wire that no system call takes
                self._refuse(opcode, unique, EINVAL)
        elif opcode != Opcode.INTERRUPT:  # no handler of ours waits for a tenant, so there is nothing to interrupt
            if opcode == Opcode.INIT:
                if self._on_init is not None:
                    self._on_init(bytes(request))
                self._forward_init(request)
            else:
                self.forwarded += 1
                self._ours.sendall(request)

    def _forward_init(self, request: memoryview) -> None:
        self._init_unique = _number(request)
        request = _without(request, self._hidden_features)
        body = request[wire.IN_HEADER.size :]
        self.resends = offers(body, wire.INIT_HAS_RESEND)
        self._maps_ids = offers(body, wire.INIT_ALLOW_IDMAP)
        self._device.agree(
            passthrough=self._want_passthrough and offers(body, wire.INIT_PASSTHROUGH),
            in_hand=None if self.resends else self._keeps_in_hand,
        )
        self.forwarded += 1
        self._ours.sendall(request)

    def _refuse(self, opcode: int, unique: int, error: int) -> None:
        """Answer with an errno. Where nobody waits for an answer nobody else would hear of it: the log does."""
        if opcode in UNANSWERED:
            log.error("request %d (opcode %d), which takes no answer, failed: %s", unique, opcode, os.strerror(error))
        else:
            self._device.reply(unique, error)

    def _reply_pump(self) -> None:
        buffer = bytearray(wire.REQUEST_BYTES)
        view = memoryview(buffer)
        while True:
            length = self._ours.recv_into(buffer)
            if length == 0:
                return
            _, error, unique = wire.OUT_HEADER.unpack_from(buffer)
            is_init = unique == self._init_unique and not self.initialised.is_set()
            if is_init and error == 0:
                self._edit_init(view[wire.OUT_HEADER.size : length])
            self._device.pass_on(unique, view[:length])
            if is_init:  # which the kernel does not wait for if it is not the first daemon's
                self.initialised.set()

    def _edit_init(self, body: memoryview) -> None:
        if len(body) < wire.INIT_OUT.size:
            raise HostFault(f"libfuse's INIT reply has {len(body)} bytes, {wire.INIT_OUT.size} expected")
        fields = list(wire.INIT_OUT.unpack_from(body))
        flags = fields[3] | fields[10] << 32
        # The kernel then truncates and drops set-id bits through SETATTR, in the order that Linux does it in.
        flags &= ~(wire.INIT_ATOMIC_O_TRUNC | wire.INIT_HANDLE_KILLPRIV)
        flags |= wire.INIT_MAX_PAGES
        flags |= wire.INIT_EXPORT_SUPPORT | wire.INIT_DO_READDIRPLUS | wire.INIT_READDIRPLUS_AUTO
        # A default ACL replaces the umask, so the umask is the store's to apply; and who sets an ACL may lose set-gid.
        flags |= wire.INIT_POSIX_ACL | wire.INIT_DONT_MASK | wire.INIT_SETXATTR_EXT
        if self.resends:
            flags |= wire.INIT_EXT | wire.INIT_HAS_RESEND
        if self._maps_ids:  # from then on only requests that make something say whose they are: others have uid -1
            flags |= wire.INIT_EXT | wire.INIT_ALLOW_IDMAP
        if self._device.passthrough:
            flags |= wire.INIT_EXT | wire.INIT_PASSTHROUGH
            fields[11] = 1  # max_stack_depth: the backing file's filesystem stacks on nothing
            fields[2] = 0  # max_readahead: a page cache that is not used is not to be filled ahead
        fields[3], fields[10] = flags & 0xFFFFFFFF, flags >> 32
        fields[6], fields[8] = wire.MAX_WRITE, wire.PAGES_PER_WRITE
        wire.INIT_OUT.pack_into(body, 0, *fields)


def _number(request: memoryview | bytes) -> int:
    unique: int = wire.IN_HEADER.unpack_from(request)[2]
    return unique


def _thread(request: bytes) -> int:
    thread_id: int = wire.IN_HEADER.unpack_from(request)[6]
    return thread_id


def _without(init_request: memoryview, features: int) -> memoryview:
    """An INIT request of a kernel that lacks some of its features."""
    if not features:
        return init_request
    fields = list(wire.INIT_IN.unpack_from(init_request, wire.IN_HEADER.size))
    fields[3], fields[4] = fields[3] & ~features & 0xFFFFFFFF, fields[4] & ~(features >> 32)
    changed = bytearray(init_request)
    wire.INIT_IN.pack_into(changed, wire.IN_HEADER.size, *fields)
    return memoryview(changed)
