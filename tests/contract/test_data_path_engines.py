"""READ and WRITE on the wire, by C and by Python: the same replies, the same bytes, the same books. GETATTR by C.

The kernel is a socket here; the store, the books, the callers and the channel are real.
"""

import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EINVAL, ENOSPC, ESTALE
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.common.errors import HostFault
from sharedfs.fuse import messages as names
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import Opcode
from sharedfs.fuse.relay import Channel
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.ops.data import PURE_PYTHON_VARIABLE, DataPath, fastpath
from sharedfs.ops.shortcut import Given
from sharedfs.storage.inodes import ENTRY_SECONDS
from sharedfs.storage.tree import Store
from tests.support.parts import build_parts, make_books, make_store
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20
READ_CALL = wire.READ_LOCKOWNER

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the store's tmpfs needs root")


@dataclass
class Wire:
    """The kernel's end: asks, and reads the answer."""

    kernel: socket.socket
    store: Store
    books: Books
    channel: Channel
    data_path: DataPath
    callers: Callers
    inode: int

    def ask(self, opcode: int, body: bytes, node: int | None = None) -> tuple[int, bytes]:
        """(errno, body of the reply)."""
        thread = threading.get_native_id()
        node = self.inode if node is None else node
        self.kernel.send(wire.IN_HEADER.pack(40 + len(body), opcode, 77, node, 0, 0, thread, 0, 0) + body)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        reply = self.kernel.recv(2 * MIB)
        length, error, unique = wire.OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (len(reply), 77)
        return -error, reply[16:]

    def read(self, offset: int, size: int, flags: int = READ_CALL, node: int | None = None) -> tuple[int, bytes]:
        return self.ask(Opcode.READ, struct.pack("<QQIIQII", 0, offset, size, flags, 0, 0, 0), node)

    def write(self, offset: int, data: bytes, flags: int = 0) -> tuple[int, int]:
        body = struct.pack("<QQIIQII", 0, offset, len(data), flags, 0, 0, 0) + data
        error, reply = self.ask(Opcode.WRITE, body)
        return error, wire.WRITE_OUT.unpack(reply)[0] if not error else 0

    def holdings(self) -> list[tuple[SharingClass, int]]:
        self.books.check()
        return self.books.questions.holdings()

    def mode(self) -> int:
        return self.store.stat(self.store.node(self.inode)).st_mode


@contextmanager
def served(engine: str) -> Iterator[Wire]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as resources:
        events: TaskEvents | None = None
        if engine == "C":
            patch.delenv(PURE_PYTHON_VARIABLE, raising=False)
            try:
                events = TaskEvents()
            except HostFault as fault:
                pytest.skip(str(fault))
            resources.callback(events.close)
        else:
            patch.setenv(PURE_PYTHON_VARIABLE, "1")
        store, books = make_store(8 * MIB), make_books()
        resources.callback(store.close)
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        resources.enter_context(device)
        kernel.settimeout(10)
        for end in (kernel, device):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        ended: list[BaseException | None] = []
        parts = build_parts(
            resources, store, books, ended=ended, device_fd=device.fileno(), events=events, passthrough=True
        )
        parts.device.agree(passthrough=True, in_hand=None)
        channel, data_path = parts.channel, parts.data_path
        channel.start()

        def stop() -> None:
            channel.close()
            kernel.close()
            wait_until(lambda: len(ended) == 2, "both pumps ended")

        resources.callback(stop)
        node, _ = store.make(store.node(wire.ROOT_NODE), b"file", 0o100644, 0, 0, 0)
        assert data_path.engine == engine
        yield Wire(kernel, store, books, channel, data_path, parts.callers, node.inode)
    assert ended == [None, None]


@pytest.fixture(params=["C", "Python"])
def ends(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with served(request.param) as made:
        yield made


def test_who_is_about_to_end_reads_no_more(ends: Wire) -> None:
    """The kernel fails a request that it is handing over when the process ends."""
    assert ends.write(0, b"a" * 5000) == (0, 5000)
    ends.channel.leave(10)
    ends.kernel.settimeout(0.1)
    with pytest.raises(TimeoutError):
        ends.read(0, 100)
    ends.channel._leaves = False
    if ends.data_path.shortcut is not None:
        ends.data_path.shortcut.leaves = 0
    ends.kernel.settimeout(10)
    assert ends.answer() == (0, b"a" * 100), "the kernel had it all the while"


def test_the_extension_was_built() -> None:
    """It is optional for users; where the tests run there is a compiler."""
    assert fastpath is not None


@pytest.mark.parametrize("wrong", [{"nodes": None}, {"verified": []}, {"left": ()}, {"credit": b"\0" * 8}])
def test_the_extension_refuses_what_it_cannot_read_and_keeps_nothing_of_it(wrong: dict[str, Any]) -> None:
    assert fastpath is not None
    books, callers = make_books(), SimpleNamespace(verified_at=0)
    right = Given(0, 4096, 1, {}, {}, {}, {}, callers, {}, (), *books.for_shortcut(), memoryview(bytearray(8)))
    objects = right.callers, right.ledger, right.settled, right.touch
    before = [sys.getrefcount(held) for held in objects]
    for _ in range(100):
        with pytest.raises(TypeError):
            fastpath.FastPath(right._replace(**wrong))
    fastpath.FastPath(right)
    assert [sys.getrefcount(held) for held in objects] == before


def test_attributes_are_what_python_says_and_left_to_it_where_it_must_look() -> None:
    with served("C") as ends:
        store, node = ends.store, ends.store.node(ends.inode)
        assert ends.write(0, b"a" * 5000) == (0, 5000)
        os.utime(store.descriptor_path(node), ns=(1_500_000_001, -1_500_000_001))
        for inode in (ends.inode, wire.ROOT_NODE):
            found = store.stat(store.node(inode))
            expected = names.ATTR_OUT.pack(ENTRY_SECONDS, 0, 0, *names.attributes(inode, found.st_nlink, found))
            assert ends.ask(Opcode.GETATTR, bytes(16), inode) == (0, expected)
        assert ends.data_path.requests["getattr"] == 2

        def is_answered() -> bool:
            assert ends.data_path.shortcut is not None
            return ends.data_path.shortcut.serve(
                wire.IN_HEADER.pack(56, Opcode.GETATTR, 78, ends.inode, 0, 0, 0, 0, 0) + bytes(16)
            )

        node.may_be_mapped = True
        assert not is_answered()
        node.may_be_mapped = False
        store.removed[ends.inode] = b"file"
        assert not is_answered()
        del store.removed[ends.inode]
        store.make_room()
        assert not is_answered()
        store.stat(node)
        assert is_answered()


def test_a_name_that_is_not_there_is_told_and_any_other_is_left_to_python() -> None:
    with served("C") as ends:
        store = ends.store
        store.stat(store.node(wire.ROOT_NODE))
        absent = names.ENTRY_OUT.pack(0, 0, ENTRY_SECONDS, *(0 for _ in range(19)))
        assert ends.ask(Opcode.LOOKUP, b"nothing\0", wire.ROOT_NODE) == (0, absent)
        assert ends.data_path.requests["absent"] == 1

        def is_answered(name: bytes, parent: int = wire.ROOT_NODE) -> bool:
            assert ends.data_path.shortcut is not None
            header = wire.IN_HEADER.pack(40 + len(name), Opcode.LOOKUP, 78, parent, 0, 0, 0, 0, 0)
            return ends.data_path.shortcut.serve(header + name)

        store.stat(store.node(ends.inode))
        for name in (b"file", b".", b"..", b"", b"a/b", b"../outside", b"x" * 256):
            assert not is_answered(name + b"\0"), name
        for cut in (b"", b"nothing", b"no\0thing\0"):
            assert not is_answered(cut), cut
        assert not is_answered(b"nothing\0", ends.inode), "no directory"
        assert not is_answered(b"nothing\0", 12345), "no inode"
        assert is_answered(b"nothing\0")


def test_what_is_written_is_read_and_booked(ends: Wire) -> None:
    assert ends.write(0, b"a" * 5000) == (0, 5000)
    assert ends.write(6000, b"b" * 10) == (0, 10)
    assert ends.read(0, 3 * PAGE) == (0, b"a" * 5000 + bytes(1000) + b"b" * 10)
    assert ends.read(5990, 4) == (0, bytes(4))
    assert ends.read(MIB, PAGE) == (0, b"")
    (held, size_bytes), *others = ends.holdings()
    assert (others, size_bytes, len(held.payers)) == ([], 2 * PAGE, 1)
    assert {name: ends.data_path.requests[name] for name in ("read", "write")} == {"read": 3, "write": 2}


def test_uses_that_change_nothing_are_known_and_those_that_do_are_booked(ends: Wire) -> None:
    """Many uses in a row settle a file; whatever changes the books afterwards is noticed."""
    assert ends.write(0, b"a" * 3 * PAGE) == (0, 3 * PAGE)
    for _ in range(20):
        assert ends.read(PAGE, 10) == (0, b"a" * 10)
    assert ends.write(3 * PAGE, b"b") == (0, 1)
    assert [size_bytes for _, size_bytes in ends.holdings()] == [4 * PAGE]
    for _ in range(20):
        assert ends.write(3 * PAGE + 5, b"c") == (0, 1)
    assert ends.write(4 * PAGE - 1, b"dd") == (0, 2)
    assert ends.write(6 * PAGE, b"e") == (0, 1)
    assert [size_bytes for _, size_bytes in ends.holdings()] == [6 * PAGE]
    for _ in range(20):  # there is a hole now
        assert ends.write(0, b"f") == (0, 1)
    assert ends.write(5 * PAGE, b"g") == (0, 1)
    assert [size_bytes for _, size_bytes in ends.holdings()] == [7 * PAGE]
    (first,) = ends.holdings()
    for _ in range(2):
        ends.books.tidying.age()
    for _ in range(20):
        ends.read(0, PAGE)
    recent = [(held.recent, size_bytes) for held, size_bytes in ends.holdings()]
    assert (first[0].recent, PAGE) in recent, "a page that is read after a generation has passed is in use again"


def test_the_largest_requests(ends: Wire) -> None:
    data = os.urandom(MIB)
    for turn in range(3):
        assert ends.write(turn * MIB, data) == (0, MIB)
        assert ends.read(turn * MIB, MIB) == (0, data)
    assert sum(size_bytes for _, size_bytes in ends.holdings()) == 3 * MIB


def test_errors_are_the_backing_files(ends: Wire) -> None:
    assert ends.write(0, b"x") == (0, 1)
    assert ends.read(0, 1, node=4711) == (ESTALE, b"")
    assert ends.write(1 << 63, b"x")[0] == EINVAL
    assert ends.read(0, PAGE, flags=0) == (EINVAL, b"")
    assert [ends.write(turn * MIB, bytes(MIB))[0] for turn in range(9)].count(ENOSPC) >= 1
    assert ends.read(0, 1) == (0, b"\0")
    assert sum(size_bytes for _, size_bytes in ends.holdings()) <= 8 * MIB


def test_set_id_bits_go_with_a_write_of_somebody_else(ends: Wire) -> None:
    assert ends.write(0, b"x") == (0, 1)
    node = ends.store.node(ends.inode)
    os.chmod(ends.store.descriptor_path(node), 0o6755)
    node.set_id = True
    assert ends.write(0, b"y") == (0, 1)
    assert ends.mode() & 0o7777 == 0o6755
    assert ends.write(0, b"z", flags=wire.WRITE_KILL_SUIDGID) == (0, 1)
    assert ends.mode() & 0o7777 == 0o755
    assert ends.write(0, b"z", flags=wire.WRITE_KILL_SUIDGID) == (0, 1)


@pytest.mark.parametrize("engine", ["C", "Python"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.lists(
        st.tuples(st.booleans(), st.integers(0, 300_000), st.integers(1, 70_000), st.integers(0, 255)), max_size=20
    )
)
def test_any_sequence_is_what_a_bytearray_does(engine: str, requests: list[tuple[bool, int, int, int]]) -> None:
    model, touched = bytearray(), set[int]()
    with served(engine) as ends:
        for writes, offset, size, filling in requests:
            if writes:
                data = bytes([filling]) * size
                assert ends.write(offset, data) == (0, size)
                model.extend(bytes(max(0, offset + size - len(model))))
                model[offset : offset + size] = data
                touched |= set(range(offset // PAGE, (offset + size - 1) // PAGE + 1))
            else:
                assert ends.read(offset, size) == (0, bytes(model[offset : offset + size]))
        assert sum(size_bytes for _, size_bytes in ends.holdings()) == len(touched) * PAGE
