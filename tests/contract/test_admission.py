"""Growth beyond one's allowance is refused on the wire, by C and by Python: EDQUOT, and the file is as it was."""

import struct
import threading
from collections.abc import Iterator
from errno import EDQUOT

import pytest

from sharedfs.accounting.caps import Caps
from sharedfs.fuse.protocol import COPIES, Opcode
from sharedfs.ledger.tenant import TenantId
from tests.contract.test_data_path_engines import Wire, served

PAGE = 4096
MIB = 1 << 20


@pytest.fixture(params=["C", "Python"])
def ends(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with served(request.param) as made:
        yield made


def us(ends: Wire) -> TenantId:
    return ends.callers.tenant_of(threading.get_native_id())


def allow(ends: Wire, mark: int | None, sequence: int = 1, seconds: float = 60) -> bool:
    cgroup = ends.books.tenants.cgroup_of(us(ends))
    assert cgroup is not None
    return ends.books.admission.put(sequence, {cgroup: mark}, seconds)


def resident(ends: Wire) -> int:
    return sum(size_bytes for _, size_bytes in ends.holdings())


def fallocate(ends: Wire, offset: int, length: int, mode: int = 0) -> int:
    return ends.ask(Opcode.FALLOCATE, struct.pack("<QQQII", 0, offset, length, mode, 0))[0]


def test_a_write_within_the_allowance_succeeds_and_one_beyond_changes_nothing(ends: Wire) -> None:
    allow(ends, 64 * PAGE)
    assert ends.write(0, b"a" * 60 * PAGE) == (0, 60 * PAGE)
    assert ends.write(59 * PAGE, b"b" * 6 * PAGE)[0] == EDQUOT
    assert ends.store.stat(ends.store.node(ends.inode)).st_size == 60 * PAGE
    assert ends.read(59 * PAGE, 1) == (0, b"a"), "not even what was there is changed"
    assert ends.write(59 * PAGE, b"b" * 5 * PAGE) == (0, 5 * PAGE)
    assert ends.write(0, b"c" * 64 * PAGE) == (0, 64 * PAGE), "what is there can always be changed"
    assert ends.write(64 * PAGE, b"d")[0] == EDQUOT
    assert resident(ends) == 64 * PAGE
    assert ends.books.admission.refused == 2


def test_what_was_freed_can_be_used_at_once(ends: Wire) -> None:
    allow(ends, 8 * PAGE)
    assert ends.write(0, b"a" * 8 * PAGE) == (0, 8 * PAGE)
    assert ends.write(8 * PAGE, b"a")[0] == EDQUOT
    keep_size, punch = 1, 2
    assert fallocate(ends, 0, 3 * PAGE, keep_size | punch) == 0
    assert ends.write(8 * PAGE, b"a" * 3 * PAGE) == (0, 3 * PAGE)
    assert ends.write(0, b"a")[0] == EDQUOT


@pytest.mark.parametrize("length", [9 * PAGE, 20 * MIB])
def test_an_allocation_is_refused_whole_also_in_the_slow_lane(ends: Wire, length: int) -> None:
    allow(ends, 8 * PAGE)
    assert fallocate(ends, 0, length) == EDQUOT
    assert ends.store.stat(ends.store.node(ends.inode)).st_blocks == 0
    assert fallocate(ends, 0, 8 * PAGE) == 0
    assert fallocate(ends, 0, 8 * PAGE) == 0, "it is there already"
    assert resident(ends) == 8 * PAGE


@pytest.mark.parametrize("opcode", sorted(COPIES))
def test_a_copy_is_refused(ends: Wire, opcode: int) -> None:
    assert ends.write(0, b"a" * 8 * PAGE) == (0, 8 * PAGE)
    target, _ = ends.store.make(ends.store.node(1), b"copy", 0o100644, 0, 0, 0)
    allow(ends, 12 * PAGE)
    body = struct.pack("<QQQQQQQ", 0, 0, target.inode, 0, 0, MIB, 0)
    assert ends.ask(opcode, body)[0] == EDQUOT
    assert ends.store.stat(target).st_blocks == 0
    allow(ends, 16 * PAGE)
    error, reply = ends.ask(opcode, body)
    assert (error, struct.unpack("<Q", reply)[0]) == (0, 8 * PAGE)


def test_a_mark_counts_what_was_made_before_it_came(ends: Wire) -> None:
    """The controller made it from books that are older: growth since then is not granted a second time."""
    assert ends.write(0, b"a" * 6 * PAGE) == (0, 6 * PAGE)
    allow(ends, 8 * PAGE)
    assert ends.write(6 * PAGE, b"a" * 3 * PAGE)[0] == EDQUOT
    assert ends.write(6 * PAGE, b"a" * 2 * PAGE) == (0, 2 * PAGE)


def test_orders_that_are_late_change_nothing_and_allowances_end(ends: Wire) -> None:
    assert allow(ends, PAGE, sequence=5)
    assert not allow(ends, 100 * PAGE, sequence=4)
    assert ends.write(0, b"a" * 2 * PAGE)[0] == EDQUOT
    assert allow(ends, PAGE, sequence=6, seconds=0)
    assert ends.write(0, b"a" * 2 * PAGE) == (0, 2 * PAGE), "without a controller nobody is held back"
    ends.books.admission.keep_up(Caps())
    assert ends.books.admission.left == {}
    assert allow(ends, PAGE, sequence=1), "a controller that starts anew is heard"
    assert allow(ends, None, sequence=7)
    assert ends.write(0, b"a" * 200 * PAGE) == (0, 200 * PAGE)


def test_what_could_not_be_made_is_not_taken(ends: Wire) -> None:
    allow(ends, 100 * MIB)
    before = dict(ends.books.admission.left)
    assert ends.write(0, b"a") == (0, 1)
    assert fallocate(ends, 0, 20 * MIB) != 0, "the pool has 8 MiB"
    assert ends.books.admission.left == {us(ends): before[us(ends)] - PAGE}
