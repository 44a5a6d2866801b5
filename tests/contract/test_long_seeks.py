"""SEEK_DATA and SEEK_HOLE on the wire: a walk over many pages keeps no other request waiting."""

import os
import struct
import threading
from collections.abc import Iterator
from errno import ENXIO

import pytest

from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import Opcode
from tests.contract.test_data_path_engines import READ_CALL, Wire, served

PAGE = 4096
MIB = 1 << 20
LARGE_BYTES = 200 * MIB
LSEEK, READ = 1, 2


@pytest.fixture
def ends() -> Iterator[Wire]:
    with served("Python") as made:
        yield made


@pytest.fixture
def large(ends: Wire) -> Wire:
    """A file of 200 MiB with a page at 100 MiB."""
    node = ends.store.node(ends.inode)
    with ends.store.opened(node, os.O_RDWR) as fd:
        os.ftruncate(fd, LARGE_BYTES)
        os.pwrite(fd, bytes(PAGE), 100 * MIB)
    return ends


def seek(ends: Wire, offset: int, whence: int) -> tuple[int, int | None]:
    """(errno, where)."""
    error, body = ends.ask(Opcode.LSEEK, struct.pack("<QqII", 0, offset, whence, 0))
    return error, None if error else wire.LSEEK_OUT.unpack(body)[0]


@pytest.mark.parametrize("long_bytes", [0, 64 * MIB, LARGE_BYTES])
def test_a_seek_finds_the_same_beside_the_pump_and_in_it(
    large: Wire, long_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedfs.ops.data._LONG_SEEK_BYTES", long_bytes)
    assert seek(large, 0, os.SEEK_DATA) == (0, 100 * MIB)
    assert seek(large, 0, os.SEEK_HOLE) == (0, 0)
    assert seek(large, 100 * MIB, os.SEEK_HOLE) == (0, 100 * MIB + PAGE)
    assert seek(large, 101 * MIB, os.SEEK_HOLE) == (0, 101 * MIB)
    assert seek(large, LARGE_BYTES - 1, os.SEEK_HOLE) == (0, LARGE_BYTES - 1)
    for offset in (LARGE_BYTES, LARGE_BYTES + 1, -1, -(1 << 63), (1 << 63) - 1):
        assert seek(large, offset, os.SEEK_HOLE) == (ENXIO, None), offset
    for offset in (101 * MIB, LARGE_BYTES, -1):
        assert seek(large, offset, os.SEEK_DATA) == (ENXIO, None), offset


def answers_while_a_seek_is_under_way(ends: Wire, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which of two requests are answered, in order: a seek that ends after a while, and a read that comes later."""
    begun, may_end = threading.Event(), threading.Event()
    lseek = os.lseek

    def walk(fd: int, offset: int, whence: int) -> int:
        begun.set()
        assert may_end.wait(10)
        return lseek(fd, offset, whence)

    def ask(opcode: int, unique: int, body: bytes) -> None:
        thread = threading.get_native_id()
        ends.kernel.send(wire.IN_HEADER.pack(40 + len(body), opcode, unique, ends.inode, 0, 0, thread, 0, 0) + body)

    def answered() -> int:
        unique: int = wire.OUT_HEADER.unpack_from(ends.kernel.recv(2 * MIB))[2]
        return unique

    order = []
    monkeypatch.setattr("sharedfs.ops.data.os.lseek", walk)
    try:
        ask(Opcode.LSEEK, LSEEK, struct.pack("<QqII", 0, 0, os.SEEK_DATA, 0))
        assert begun.wait(10)
        ask(Opcode.READ, READ, struct.pack("<QQIIQII", 0, 0, PAGE, READ_CALL, 0, 0, 0))
        ends.kernel.settimeout(0.5)
        try:
            order.append(answered())
        except TimeoutError:
            order.append(0)
    finally:
        may_end.set()
    ends.kernel.settimeout(10)
    while len(set(order) - {0}) < 2:
        order.append(answered())
    return order


def test_a_read_is_answered_while_the_kernel_walks(large: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers_while_a_seek_is_under_way(large, monkeypatch) == [READ, LSEEK]


def test_in_the_pump_it_waits_for_the_walk(large: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with no seek long, nothing is answered before the walk has ended."""
    monkeypatch.setattr("sharedfs.ops.data._LONG_SEEK_BYTES", LARGE_BYTES)
    assert answers_while_a_seek_is_under_way(large, monkeypatch) == [0, LSEEK, READ]
