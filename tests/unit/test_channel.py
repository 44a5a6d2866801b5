"""The channel between two socket pairs that stand for the kernel and libfuse: what it edits, answers and passes on."""

import socket
import struct
from collections.abc import Iterator
from errno import EIO, ENOENT

import pytest

from sharedfs.fuse import protocol as wire
from sharedfs.fuse.device import Device
from sharedfs.fuse.protocol import Opcode
from sharedfs.fuse.relay import Channel, offers
from sharedfs.fuse.shortage import Shortage
from tests.support.tenants import wait_until

INIT_EXT, PASSTHROUGH_2 = 1 << 30, 1 << 5


def init_in(flags: int = INIT_EXT, flags2: int = PASSTHROUGH_2) -> bytes:
    """A kernel's INIT request body of today: fuse_init_in with its unused words."""
    return struct.pack("<IIIII", 7, 45, 131072, flags, flags2) + bytes(44)


@pytest.mark.parametrize(
    ("body", "offered"),
    [
        (init_in(), True),
        (init_in(flags2=0), False),
        (init_in(flags=0), False),  # flags2 counts with INIT_EXT only
        (struct.pack("<IIII", 7, 31, 131072, INIT_EXT), False),  # an old kernel's shorter body
    ],
)
def test_passthrough_is_found_in_the_kernels_offer(body: bytes, offered: bool) -> None:
    assert offers(memoryview(body), wire.INIT_PASSTHROUGH) is offered


class Ends:
    """The kernel's end of the channel and libfuse's."""

    def __init__(self, *, want_passthrough: bool = True, start: bool = True) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = device
        self.ended: list[BaseException | None] = []
        self.answers = Device(device.fileno())
        self.channel = Channel(
            self.answers,
            {Opcode.READ: self._read, Opcode.LSEEK: self._fail, Opcode.FORGET: self._fail},
            lambda thread_id: thread_id,
            shortage=Shortage(),
            want_passthrough=want_passthrough,
            on_end=self.ended.append,
        )
        self.libfuse = socket.socket(fileno=int(self.channel.libfuse_mountpoint.rsplit("/", 1)[1]))
        for end in (self.kernel, self.libfuse):
            end.settimeout(5)
        if start:
            self.channel.start()

    def _read(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        self.answers.reply(unique, 0, b"%d %d %d" % (node, thread_id, len(request)))

    def _fail(self, unique: int, node: int, thread_id: int, request: memoryview) -> None:
        raise OSError(EIO, "no")

    def request(self, opcode: int, unique: int, body: bytes = b"", thread_id: int = 4321) -> bytes:
        message = wire.IN_HEADER.pack(40 + len(body), opcode, unique, 5, 0, 0, thread_id, 0, 0) + body
        self.kernel.send(message)
        return message

    def answer(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        self.libfuse.send(wire.OUT_HEADER.pack(16 + len(body), -error, unique) + body)

    def reply(self) -> tuple[int, int, bytes]:
        """(unique, errno, body) as the kernel gets it."""
        message = self.kernel.recv(1 << 21)
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[16:]

    def initialise(self) -> tuple[int, ...]:
        self.request(Opcode.INIT, 1, init_in())
        self.libfuse.recv(1 << 21)
        flags = wire.INIT_ATOMIC_O_TRUNC | wire.INIT_HANDLE_KILLPRIV | 1
        self.answer(1, wire.INIT_OUT.pack(7, 31, 131072, flags, 12, 9, 131072, 1, 32, 0, 0, 0) + bytes(24))
        unique, error, body = self.reply()
        assert (unique, error, len(body)) == (1, 0, 64)
        fields: tuple[int, ...] = wire.INIT_OUT.unpack_from(body)
        return fields

    def close(self) -> None:
        self.channel.close()
        self.kernel.close()
        wait_until(lambda: len(self.ended) == 2, "both pumps ended")
        self.libfuse.close()
        self.device.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_init_is_answered_with_passthrough_and_large_writes(ends: Ends) -> None:
    fields = ends.initialise()
    flags = fields[3] | fields[10] << 32
    assert flags & wire.INIT_PASSTHROUGH
    assert flags & wire.INIT_MAX_PAGES
    ours = wire.INIT_POSIX_ACL | wire.INIT_DONT_MASK | wire.INIT_SETXATTR_EXT | wire.INIT_EXPORT_SUPPORT
    assert flags & ours == ours, "what the namespace keeps on the wire and libfuse does not know of"
    assert flags & 1, "what libfuse asked for stays"
    assert not flags & (wire.INIT_ATOMIC_O_TRUNC | wire.INIT_HANDLE_KILLPRIV)
    assert (fields[6], fields[8], fields[11]) == (wire.MAX_WRITE, 256, 1)
    assert ends.channel.initialised.wait(5)
    assert ends.answers.passthrough


def test_init_without_passthrough_when_it_is_not_wanted() -> None:
    ends = Ends(want_passthrough=False)
    try:
        fields = ends.initialise()
        assert not (fields[3] | fields[10] << 32) & (wire.INIT_PASSTHROUGH | wire.INIT_EXT)
        assert fields[11] == 0
        assert not ends.answers.passthrough
    finally:
        ends.close()


def test_everything_else_passes_unchanged_both_ways(ends: Ends) -> None:
    message = ends.request(Opcode.LOOKUP, 20, b"name\0")
    assert ends.libfuse.recv(1 << 21) == message
    ends.answer(20, b"whatever libfuse says")
    assert ends.reply() == (20, 0, b"whatever libfuse says")
    ends.request(Opcode.OPEN, 22, bytes(8))
    ends.libfuse.recv(1 << 21)
    ends.answer(22, error=ENOENT)
    assert ends.reply() == (22, ENOENT, b"")
    assert ends.channel.forwarded == 2


def test_our_own_requests_are_answered_without_libfuse(ends: Ends) -> None:
    ends.request(Opcode.READ, 30, bytes(40))
    assert ends.reply() == (30, 0, b"5 4321 80")
    ends.request(Opcode.LSEEK, 32, bytes(24))
    assert ends.reply() == (32, EIO, b"")
    ends.request(Opcode.INTERRUPT, 34, bytes(8))
    ends.request(Opcode.READ, 36, bytes(40))
    assert ends.reply()[0] == 36, "an interrupt has no answer"
    assert ends.channel.forwarded == 0


def test_a_request_that_takes_no_answer_fails_into_the_log(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    ends.request(Opcode.FORGET, 70, bytes(8))
    ends.request(Opcode.READ, 71, bytes(40))
    assert ends.reply()[0] == 71
    assert [record.message for record in caplog.records] == [
        "request 70 (opcode 2), which takes no answer, failed: Input/output error"
    ]


def test_a_short_init_reply_ends_the_connection_with_the_reason(ends: Ends) -> None:
    ends.request(Opcode.INIT, 1, init_in())
    ends.libfuse.recv(1 << 21)
    ends.answer(1, bytes(8))
    wait_until(lambda: ends.ended, "the pump ended")
    assert "INIT reply has 8 bytes" in str(ends.ended[0])


def test_requests_that_come_after_the_end_are_no_error(ends: Ends) -> None:
    ends.channel.close()
    ends.request(Opcode.LOOKUP, 40, b"name\0")
    wait_until(lambda: len(ends.ended) == 2, "both pumps ended")
    assert ends.ended == [None, None]


def test_attributes_are_expired_with_a_notification(ends: Ends) -> None:
    ends.answers.expire_attributes(77)
    unique, code, body = ends.reply()
    assert (unique, -code) == (0, wire.NOTIFY_INVAL_INODE)
    assert wire.INVAL_INODE_OUT.unpack(body) == (77, -1, 0)


def test_parties_are_served_in_turns_when_many_requests_wait() -> None:
    """A quiet party's request comes after one of the flooding one's, not after all those that were there first."""
    ends = Ends(start=False)
    try:
        for number in range(20):
            ends.request(Opcode.READ, number + 1, bytes(40), thread_id=1)
        ends.request(Opcode.READ, 1000, bytes(40), thread_id=2)
        ends.channel.start()
        answered = [ends.reply()[0] for _ in range(21)]
        assert answered.index(1000) <= 2
        assert [unique for unique in answered if unique != 1000] == list(range(1, 21))
    finally:
        ends.close()
