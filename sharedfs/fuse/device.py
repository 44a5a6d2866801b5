"""The device: what a daemon writes to /dev/fuse, that is answers to requests, and notifications that nobody asked for.

It is there before the handlers that answer on it and before the channel that hands requests to them. What was agreed on
with the kernel is known when its INIT request was read (`Channel`), and false until then.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENODEV, ENOENT
from typing import Protocol

from sharedfs.fuse import protocol as wire
from sharedfs.fuse.passthrough import BackingFiles
from sharedfs.fuse.shortage import as_told


class InHand(Protocol):
    """Told of each request that is read, put off and answered, where the kernel does not send requests again."""

    def begin(self, unique: int) -> None: ...

    def end(self, request: memoryview) -> None: ...

    def keep(self, request: memoryview) -> None: ...

    def answered(self, unique: int) -> None: ...


class Device:
    """Of one FUSE connection, by its open /dev/fuse. From any thread."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.passthrough = False
        """Whether the kernel offered passthrough, and the daemon took it."""
        self.in_hand: InHand | None = None
        """Told of answers, where the kernel does not send requests again."""
        self.backing: BackingFiles | None = None
        """The backing ids of passthrough; None without it: the kernel then refuses to hear of them (EPERM)."""
        self._backing = BackingFiles(fd)
        self._answering = threading.Lock()
        self._notifying = threading.Condition()
        self._notifications, self._notifies_no_more = 0, False

    def agree(self, *, passthrough: bool, in_hand: InHand | None) -> None:
        """What the kernel and the daemon agreed on, before anything is opened or answered."""
        self.passthrough, self.in_hand = passthrough, in_hand
        self.backing = self._backing if passthrough else None

    # -- answers -----------------------------------------------------------------------------------------------------

    def reply(self, unique: int, error: int, *parts: bytes | memoryview) -> None:
        """Answer a request; `error` is a positive errno or 0. A request that its caller gave up is no error."""
        length = wire.OUT_HEADER.size + sum(map(len, parts))
        if error:
            error = as_told(error)
        with self._answering:
            self._write([wire.OUT_HEADER.pack(length, -error, unique), *parts])
        if self.in_hand is not None:
            self.in_hand.answered(unique)

    def reply_in_place(self, unique: int, buffer: memoryview, body_bytes: int) -> None:
        """Answer with `body_bytes` of body that lie in `buffer` behind room for the header: one copy less."""
        length = wire.OUT_HEADER.size + body_bytes
        wire.OUT_HEADER.pack_into(buffer, 0, length, 0, unique)
        self.pass_on(unique, buffer[:length])

    def pass_on(self, unique: int, reply: memoryview) -> None:
        """Write an answer that has its header."""
        with self._answering:
            self._write([reply])
        if self.in_hand is not None:
            self.in_hand.answered(unique)

    def is_waiting(self, unique: int) -> bool:
        """Whether the kernel waits for the answer to a request that was read.

        A reply to the INTERRUPT of a request changes nothing, and fails with ENOENT when that request has its answer.
        """
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size, 0, unique | wire.UNIQUE_INTERRUPT)
        try:
            os.write(self.fd, header)
        except OSError as error:
            if error.errno not in (ENOENT, ENODEV):
                raise
            return False
        return True

    def answer_no_more(self, seconds: float) -> None:
        """Let no answer be under way, and none begin any more."""
        self._answering.acquire(timeout=seconds)

    # -- notifications -----------------------------------------------------------------------------------------------

    def ask_again(self) -> None:
        """Have the kernel send again what was read from the device and not answered."""
        self._notify(wire.NOTIFY_RESEND, b"")

    def expire_attributes(self, node: int) -> None:
        """Let the kernel ask for an inode's attributes when they are wanted next, however long it might keep them."""
        self._invalidate(node, -1)

    def drop_page_cache(self, node: int) -> None:
        """Have the kernel free what its page cache holds of a file. A file that it does not know is no error.

        Waits for the pages that a READ is under way for, so it is not for the request pump, which answers them.
        """
        with self._waits_in_kernel():
            self._invalidate(node, 0)

    def forget_name(self, parent: int, node: int, name: bytes) -> None:
        """A name is gone that the kernel may remember. Waits for requests in that directory: not for the pump."""
        with self._waits_in_kernel():
            self._notify(wire.NOTIFY_DELETE, wire.DELETE_OUT.pack(parent, node, len(name), 0) + name + b"\0")

    def notify_no_more(self, seconds: float) -> None:
        """Let no notification be under way that waits for a request, and none begin any more.

        Before the request pump stops: a process does not end while a thread of it waits so, and no other one begins.
        """
        with self._notifying:
            self._notifies_no_more = True
            self._notifying.wait_for(lambda: not self._notifications, seconds)

    @contextmanager
    def _waits_in_kernel(self) -> Iterator[None]:
        """Around what waits for an answer, so without any lock that who answers may want."""
        with self._notifying:
            self._notifying.wait_for(lambda: not self._notifies_no_more)
            self._notifications += 1
        try:
            yield
        finally:
            with self._notifying:
                self._notifications -= 1
                self._notifying.notify_all()

    def _invalidate(self, node: int, offset: int) -> None:
        """Attributes, and the data from `offset` on if that is not negative."""
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(node, offset, 0))

    def _notify(self, code: int, body: bytes) -> None:
        self._write([wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), code, 0), body])

    def _write(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno not in (ENOENT, ENODEV):  # interrupted meanwhile; or the connection is over
                raise
