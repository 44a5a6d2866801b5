"""Long work is cut into pieces: how many pages are touched while the books' lock is held, and what a kill leaves.

Nothing here measures time. The lock counts what happens to page maps while it is held, so a piece that grows is seen
on any machine. What a piece takes is in bench/neighbours.py.
"""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import pytest

from sharedfs.accounting.books import Books
from sharedfs.fuse.device import Device
from sharedfs.fuse.protocol import Opcode
from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.holdings import even_shares
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.page_map import PageMap
from sharedfs.ledger.page_ranges import LAST_PAGE, as_runs
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.cgroups import CgroupRef
from sharedfs.maintenance.giving_way import GivingWay
from sharedfs.maintenance.gone_names import TakenOut
from sharedfs.maintenance.unclaimed import UnclaimedFiles
from sharedfs.ops.content import Content
from sharedfs.ops.namespace import Namespace
from sharedfs.ops.recent_uses import RecentUses
from sharedfs.ops.recovery import _Recovery
from sharedfs.pages.reaper import PIECE_FILES, PIECE_PAGES, Reaper
from sharedfs.pages.spill import Spill
from sharedfs.storage.journal import Kind
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store
from tests.support.parts import build_parts, make_books, make_store
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20
FILE = 7
CHUNKS = 256  # 1 GiB
MOST_CHUNKS = 64
"""Chunks that one hold of the lock may visit: each takes 35 us at most."""


class CountingLock:
    """A lock that knows how many chunks were visited at most while it was held once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.visited = 0
        self.most = 0
        self.total = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.visited = 0

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.most = max(self.most, self.visited)
        self.total += self.visited
        self._lock.release()


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> CountingLock:
    counting = CountingLock()
    apply_to_chunk, apply_where, runs = PageMap._apply_to_chunk, PageMap.apply_where, PageMap.resident_runs

    def counted(method):  # type: ignore[no-untyped-def]
        def count(*arguments):  # type: ignore[no-untyped-def]
            counting.visited += 1
            return method(*arguments)

        return count

    monkeypatch.setattr(PageMap, "_apply_to_chunk", counted(apply_to_chunk))
    monkeypatch.setattr(PageMap, "apply_where", counted(apply_where))
    monkeypatch.setattr(PageMap, "resident_runs", counted(runs))
    return counting


@pytest.fixture
def books(lock: CountingLock, monkeypatch: pytest.MonkeyPatch) -> Books:
    with monkeypatch.context() as patch:
        patch.setattr("sharedfs.accounting.core.Lock", lambda: lock)
        return make_books()


def every_other_page() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    pages = np.arange(0, CHUNKS * PAGES_PER_CHUNK, 2, dtype=np.int64)
    return np.stack((pages, pages), axis=1)


def test_a_mapping_of_every_other_page_is_booked_in_pieces(books: Books, lock: CountingLock) -> None:
    owner, reader = (books.tenants.intern(f"/t{number}", number) for number in (1, 2))
    books.pages.charge_allocated(FILE, [(0, CHUNKS * PAGES_PER_CHUNK - 1)], owner)
    runs = every_other_page()
    assert len(books.mappings.unbooked(FILE, reader, runs)) == 0
    books.mappings.put(FILE, reader, runs)
    assert (
        sum(bytes_ for held, bytes_ in books.questions.file_holdings(FILE) if reader in held.mapped) == len(runs) * PAGE
    )
    books.mappings.put(FILE, reader, as_runs([]))
    books.pages.uncharge(FILE, 0, LAST_PAGE)
    assert books.questions.resident_bytes() == 0
    assert 0 < lock.most <= MOST_CHUNKS
    books.check()


def test_pages_that_a_mapping_brought_are_booked_in_pieces(books: Books, lock: CountingLock) -> None:
    tenant = books.tenants.intern("/t", 1)
    runs = every_other_page()
    brought = books.mappings.unbooked(FILE, tenant, runs)
    assert brought.tolist() == runs.tolist()
    books.mappings.bring(FILE, tenant, [(first, last) for first, last in brought.tolist()])
    books.mappings.put(FILE, tenant, runs)
    assert sum(bytes_ for held, bytes_ in books.questions.file_holdings(FILE) if held.foreign) == len(runs) * PAGE
    assert lock.most <= 3 * MOST_CHUNKS, "ranges, each of which is looked for and booked"
    books.check()


def test_in_one_piece_it_is_what_the_pieces_are_for(lock: CountingLock) -> None:
    """Control: the ledger's own method visits all chunks at once."""
    ledger = Ledger(PAGE)
    ledger.charge(FILE, 0, CHUNKS * PAGES_PER_CHUNK - 1, TenantId(1))
    with lock:
        ledger.set_mapped(FILE, TenantId(1), every_other_page())
    assert lock.most == CHUNKS


def test_who_exits_between_two_pieces_maps_nothing(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, reader = (books.tenants.intern(f"/t{number}", number) for number in (1, 2))
    books.pages.charge_allocated(FILE, [(0, CHUNKS * PAGES_PER_CHUNK - 1)], owner)
    pieces = []

    def exit_in_between(_: float) -> None:
        pieces.append(1)
        if len(pieces) == 3:
            books.tenants.exit([reader])

    monkeypatch.setattr("sharedfs.accounting.core.time.sleep", exit_in_between)
    books.mappings.put(FILE, reader, every_other_page())
    assert len(pieces) == 3
    assert not any(reader in held.users for held, _ in books.questions.file_holdings(FILE))
    assert books.mappings.known() == set()
    books.check()


@pytest.fixture
def store() -> Iterator[Store]:
    kept = make_store(256 * MIB)
    yield kept
    kept.close()


def large_file(store: Store, books: Books, size: int) -> Node:
    node, _ = store.make(store.node(1), b"large", 0o100644, 0, 0, 0)
    with store.opened(node, os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, size)
    books.pages.charge(node.inode, 0, size, NOBODY)
    return node


Serving = tuple[Store, Books, Namespace, Reaper]


@pytest.fixture
def serving(store: Store, books: Books) -> Iterator[Serving]:
    ended: list[BaseException | None] = []
    with ExitStack() as resources:
        parts = build_parts(resources, store, books, ended=ended)
        yield store, books, parts.namespace, parts.reaper
    assert ended == []


def test_a_piece_of_a_file_that_is_freed_is_small_whoever_asks_for_it(serving: Serving) -> None:
    store, books, _, reaper = serving
    size = 96 * MIB
    node = large_file(store, books, size)
    store.set_aside(store.node(1), b"large")
    assert reaper.takes(node.inode)
    store.drop(node.inode)
    reaper.add(node.inode, store.removed.pop(node.inode))
    before, pieces = store.tmpfs.used_bytes(), []
    assert reaper.waiting_bytes == size
    while reaper.free_some():
        now = store.tmpfs.used_bytes()
        assert books.questions.resident_bytes() == now, "the books have what is not freed yet"
        pieces.append(before - now)
        before = now
    assert sum(pieces) == size
    assert max(pieces) <= (PIECE_PAGES + PAGES_PER_CHUNK) * PAGE
    assert len(pieces) >= size // max(pieces)
    assert store.tmpfs.removed_names() == {}


def test_many_small_files_that_are_forgotten_at_once_are_freed_in_pieces(serving: Serving) -> None:
    """The kernel drops tens of thousands in one request when memory is short."""
    store, books, namespace, reaper = serving
    inodes = []
    for number in range(300):
        node, _ = namespace.names.make(1, b"f%d" % number, 0o100644, 0, 0, 0, 0, 0)
        with store.opened(node, os.O_RDWR) as fd:
            os.pwrite(fd, b"x", 0)
        books.pages.charge(node.inode, 0, 1, NOBODY)
        inodes.append(node.inode)
    for number in range(300):
        namespace.names.unlink(1, b"f%d" % number)
    namespace.references.forget_all(2, [(inode, 1) for inode in inodes])
    left = [len(store.tmpfs.removed_names())]
    assert left == [300], "the request is done, and has freed none"
    while reaper.free_some():
        left.append(len(store.tmpfs.removed_names()))
        assert books.questions.resident_bytes() == left[-1] * PAGE
    assert left[-1] == 0
    assert all(0 < before - after <= PIECE_FILES for before, after in itertools.pairwise(left))
    assert store.removed == {}


def test_few_files_are_gone_when_they_are_forgotten(serving: Serving) -> None:
    store, _, namespace, _ = serving
    node, _ = namespace.names.make(1, b"f", 0o100644, 0, 0, 0, 0, 0)
    namespace.names.unlink(1, b"f")
    namespace.references.forget_all(2, [(node.inode, 1)])
    assert store.tmpfs.removed_names() == {}


def test_a_cut_that_a_killed_daemon_did_not_book_is_booked(serving: Serving) -> None:
    """Nobody may ask for it again: its caller can be killed as well."""
    store, books, namespace, _ = serving
    node = large_file(store, books, 8 * MIB)
    store.slot.take(77, Opcode.SETATTR)
    store.slot.intend(Kind.CUT, node.inode, other=10)
    recovery = _Recovery(namespace, lambda *_: None)
    recovery.end(store.slot)
    assert books.questions.resident_bytes() == 8 * MIB, "it had not begun"
    store.slot.intend(Kind.CUT, node.inode, other=10)
    os.truncate(store.descriptor_path(node), 10)
    recovery.end(store.slot)
    assert books.questions.resident_bytes() == store.tmpfs.used_bytes() == PAGE
    assert store.slot.intent() is None


def test_every_other_page_that_is_gone_is_booked_in_pieces_of_chunks(books: Books, lock: CountingLock) -> None:
    """A look at a chunk takes out all that is gone there: not one for each of 65,536 gaps."""
    tenant = books.tenants.intern("/t", 1)
    pages = 128 * PAGES_PER_CHUNK
    books.pages.charge_allocated(FILE, [(0, pages - 1)], tenant)
    lock.most = lock.total = 0
    books.pages.uncharge(FILE, 0, pages - 1, [(page, page) for page in range(0, pages, 2)])
    assert books.questions.resident_bytes() == pages // 2 * PAGE
    assert 0 < lock.most <= MOST_CHUNKS
    assert lock.total == 128
    lock.total = 0
    books.pages.lose_absent(FILE, 0, 63, lambda first, last: [(page, page) for page in range(first, last, 4)])
    assert books.questions.resident_bytes() == (pages // 2 - 16) * PAGE
    assert lock.total == 1
    books.check()


def test_a_handle_that_reads_past_us_is_opened_and_closed_in_pieces(books: Books, lock: CountingLock) -> None:
    """The request does the first one, the next scan the others."""
    owner, reader = (books.tenants.intern(f"/t{number}", number) for number in (1, 2))
    books.pages.charge_allocated(FILE, [(0, CHUNKS * PAGES_PER_CHUNK - 1)], owner)

    def users() -> tuple[int, int]:
        found = books.questions.file_holdings(FILE)
        return sum(size for held, size in found if reader in held.mapped), sum(
            size for held, size in found if reader in held.users
        )

    lock.most = lock.total = 0
    assert books.readers.open(FILE, reader) == reader
    assert lock.total <= MOST_CHUNKS
    books.readers.refresh()
    assert users() == (CHUNKS * PAGES_PER_CHUNK * PAGE,) * 2
    lock.total = 0
    books.readers.close(FILE, reader)
    assert lock.total <= MOST_CHUNKS
    books.readers.refresh()
    assert users() == (0, CHUNKS * PAGES_PER_CHUNK * PAGE), "the end of a use counts as a touch"
    assert lock.most <= MOST_CHUNKS
    books.readers.open(FILE, reader)
    books.readers.close(FILE, reader)
    books.readers.open(FILE, reader)
    books.readers.refresh()
    assert users()[0] == CHUNKS * PAGES_PER_CHUNK * PAGE, "it was opened again before the scan"
    books.check()


def test_a_file_that_gives_way_is_freed_in_pieces_and_stays_until_the_kernel_forgets_it(serving: Serving) -> None:
    store, books, namespace, reaper = serving
    node = large_file(store, books, 96 * MIB)
    node.lookups = 1
    taken: list[TakenOut] = []
    device_fd = os.open(os.devnull, os.O_RDWR)
    spill = Spill(None, store, books)
    unclaimed = UnclaimedFiles(
        store, books, namespace.names, RecentUses(store.lock), spill, Device(device_fd), taken.append
    )
    giving_way = GivingWay(store, books, Content(store, spill), unclaimed, lambda: True, taken.append, reaper)
    used = store.tmpfs.used_bytes()
    free = os.statvfs(store.tmpfs.mount_fd).f_bavail * PAGE
    assert giving_way.for_bytes(free + MIB, 0)
    piece = (PIECE_PAGES + PAGES_PER_CHUNK) * PAGE
    assert 0 < used - store.tmpfs.used_bytes() <= piece, "as much as the request needs"
    assert books.questions.resident_bytes() == store.tmpfs.used_bytes()
    while reaper.free_some():
        assert books.questions.resident_bytes() == store.tmpfs.used_bytes()
    assert store.tmpfs.used_bytes() == 0
    assert list(store.removed) == [node.inode], "the kernel has a reference"
    namespace.references.forget(node.inode, 0)
    assert store.tmpfs.removed_names() == {}
    wait_until(lambda: bool(taken), "the kernel is told", 10)
    os.close(device_fd)


def test_a_file_that_gives_way_and_is_forgotten_halfway_is_gone_in_the_end(serving: Serving) -> None:
    store, books, namespace, reaper = serving
    node = large_file(store, books, 32 * MIB)
    node.lookups = 1
    namespace.names.unlink_unasked(1, b"large")
    reaper.empty(node.inode, store.removed[node.inode])
    assert reaper.free_some()
    namespace.references.forget(node.inode, 0)
    assert store.removed == {}
    while reaper.free_some():
        assert books.questions.resident_bytes() == store.tmpfs.used_bytes()
    assert store.tmpfs.removed_names() == {}
    assert books.questions.resident_bytes() == store.tmpfs.used_bytes() == 0


def test_files_are_not_looked_at_for_what_no_class_is(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether any page is unclaimed is asked every few seconds, of pools with a hundred thousand files."""
    books.tenants.intern("/t", 1)
    for file in range(20):
        books.pages.charge(file, 0, PAGE, TenantId(1))
    looked_at: list[int] = []
    among = Ledger.files_among

    def counted(ledger: Ledger, files: list[int], verdicts: object) -> list[int]:
        looked_at.extend(files)
        return among(ledger, files, verdicts)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "files_among", counted)
    assert books.questions.files_where(lambda held: held.is_unclaimed) == []
    assert looked_at == []
    books.pages.charge_allocated(7, [(1, 1)], NOBODY)
    assert books.questions.files_where(lambda held: held.is_unclaimed) == [7]
    assert len(looked_at) == 20, "control: here all are"


def test_questions_about_all_classes_are_answered_without_the_lock(
    books: Books, lock: CountingLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who pays for a class is worked out when nobody waits: for none of them while the lock is held."""
    for number in range(1, 12):
        books.tenants.intern(f"/t{number}", number)
    for page in range(1024):
        books.pages.charge(page % 4, page // 4 * PAGE, (page // 4 + 1) * PAGE, TenantId(1))
        for bit in range(10):
            if page >> bit & 1:
                books.pages.touch(page % 4, page // 4 * PAGE, (page // 4 + 1) * PAGE, TenantId(bit + 2))
    payers = SharingClass.payers

    def counted(held: SharingClass) -> frozenset[TenantId]:
        lock.visited += 1
        return payers.__get__(held)

    monkeypatch.setattr(SharingClass, "payers", property(counted))
    lock.most = 0
    assert books.questions.bytes_where(lambda held: TenantId(3) in held.payers) == 512 * PAGE
    assert books.questions.files_where(lambda held: TenantId(3) in held.payers) == [2, 3]
    share = even_shares(books.questions.holdings())[TenantId(1)]
    assert books.admission.put(1, {CgroupRef("/t1", 1): 1 << 30}, 10.0)
    books.questions.statistics()
    assert lock.most == 0
    assert books.admission.left[TenantId(1)] == (1 << 30) - share
    monkeypatch.setattr("sharedfs.accounting.quota.LOOKED_AT_CLASSES", 100)
    with pytest.raises(OSError, match="quota"):
        books.admission.take(FILE, 0, 1 << 31, TenantId(1))
    assert lock.most <= 100
