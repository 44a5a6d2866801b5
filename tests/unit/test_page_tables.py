"""Many small mappings are asked about together, and what page tables show is divided among them."""

import ctypes
import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import merged
from sharedfs.linux.mapping_table import MappingTable
from sharedfs.linux.pagemap import PagemapReader
from sharedfs.linux.procfs import Mapping, task_maps
from sharedfs.pages.page_tables import Mapped, MappedTable, look, present_pages, see, spans

PAGES = 64
MANY = 5000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAP_FIXED = 0x10


@dataclass(frozen=True)
class Part:
    """Some pages of a file that are mapped next to what is mapped before, or a page apart."""

    file: int
    first_page: int
    pages: int
    shared: bool
    apart: bool
    touched: frozenset[int]
    written: frozenset[int]


PARTS = st.builds(
    Part,
    file=st.integers(0, 2),
    first_page=st.integers(0, PAGES - 4),
    pages=st.integers(1, 4),
    shared=st.booleans(),
    apart=st.booleans(),
    touched=st.frozensets(st.integers(0, 3)),
    written=st.frozensets(st.integers(0, 3), max_size=2),
)


@pytest.fixture(scope="module")
def files() -> Iterator[list[int]]:
    with ExitStack() as resources:
        opened = []
        for number in range(3):
            fd = os.memfd_create(f"file{number}")
            resources.callback(os.close, fd)
            os.posix_fallocate(fd, 0, PAGES * PAGE_BYTES)
            opened.append(fd)
        yield opened


def map_at(address: int, part: Part, fd: int) -> None:
    flags = (mmap.MAP_SHARED if part.shared else mmap.MAP_PRIVATE) | _MAP_FIXED
    size, offset = part.pages * PAGE_BYTES, part.first_page * PAGE_BYTES
    assert _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset) == address
    view = (ctypes.c_char * size).from_address(address)
    for page in part.touched:
        if page < part.pages:
            assert len(view[page * PAGE_BYTES]) == 1
    for page in part.written:
        if page < part.pages:
            view[page * PAGE_BYTES] = b"x"


def one_by_one(reader: PagemapReader, mappings: list[Mapping]) -> dict[int, list[tuple[int, int]]]:
    """What was done before: the kernel is asked for each mapping."""
    found: dict[int, list[tuple[int, int]]] = {}
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        for mapping in mappings:
            parts = reader.present(pagemap, mapping.start, mapping.end, shared=mapping.shared).tolist()
            found.setdefault(mapping.inode, []).extend(
                (mapping.page_at(first), mapping.page_at(behind) - 1) for first, behind in parts
            )
    finally:
        os.close(pagemap)
    return {inode: merged(pages) for inode, pages in found.items()}


@pytest.mark.parametrize("use_scan", [True, False], ids=["PAGEMAP_SCAN", "entries"])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=30))
def test_together_the_kernel_says_what_it_says_one_by_one(files: list[int], use_scan: bool, parts: list[Part]) -> None:
    with mmap.mmap(-1, 2 * 5 * 30 * PAGE_BYTES) as place:
        start = at = ctypes.addressof(ctypes.c_char.from_buffer(place))
        mappings = []
        for part in parts:
            at += PAGE_BYTES * part.apart
            map_at(at, part, files[part.file])
            end = at + part.pages * PAGE_BYTES
            mappings.append(Mapping(at, end, part.shared, part.first_page * PAGE_BYTES, part.file))
            at = end
        reader = PagemapReader(use_scan=use_scan)
        table = MappingTable.of(mappings)
        assert len(list(spans(table))) == 1
        found = present_pages(reader, "/proc/self", table)
        assert {inode: [tuple(run) for run in runs.tolist()] for inode, runs in found.items()} == one_by_one(
            reader, mappings
        )
        assert _libc.mmap(start, len(place), 3, mmap.MAP_PRIVATE | mmap.MAP_ANON | _MAP_FIXED, -1, 0) == start


def test_what_is_large_or_far_apart_is_asked_about_alone() -> None:
    mib = 1 << 20
    mappings = [
        Mapping(0, PAGE_BYTES, True, 0, 1),
        Mapping(PAGE_BYTES, 3 * PAGE_BYTES, False, 0, 1),
        Mapping(mib, 5 * mib, True, 0, 1),
        Mapping(5 * mib, 5 * mib + PAGE_BYTES, True, 0, 1),
        Mapping(6 * mib, 6 * mib + PAGE_BYTES, True, 0, 2),
        Mapping(9 * mib, 9 * mib + PAGE_BYTES, True, 0, 1),
    ]
    assert list(spans(MappingTable.of(mappings))) == [
        (0, 3 * PAGE_BYTES, False),
        (mib, 5 * mib, True),
        (5 * mib, 6 * mib + PAGE_BYTES, True),
        (9 * mib, 9 * mib + PAGE_BYTES, True),
    ]


CROWD = """
import ctypes, mmap, sys
fd, many = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for number in range(many):
    address = libc.mmap(None, mmap.PAGESIZE, 3, mmap.MAP_SHARED, fd, number * 7919 % many * mmap.PAGESIZE)
    ctypes.c_char.from_address(address).value = b"x"
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def crowded() -> Iterator[tuple[int, tuple[int, int]]]:
    """A process with very many mappings of one page each, in no order, and the device of the file.

    It is a program of its own: a child by fork would have the mappings that other tests left in this process."""
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, MANY * PAGE_BYTES)
    child = subprocess.Popen(
        [sys.executable, "-c", CROWD, str(fd), str(MANY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[fd],
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "mapped\n"
        device = os.fstat(fd).st_dev
        yield child.pid, (os.major(device), os.minor(device))
    finally:
        child.communicate()
        os.close(fd)


def test_a_process_with_thousands_of_mappings_is_asked_about_a_few_times(
    crowded: tuple[int, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, device = crowded
    asked = []
    present = PagemapReader.present

    def counted(reader, fd, start, end, *, shared):  # type: ignore[no-untyped-def]
        asked.append((start, end))
        return present(reader, fd, start, end, shared=shared)

    monkeypatch.setattr(PagemapReader, "present", counted)
    sight = see(process, device, pages=True, opened=False)
    assert [runs.tolist() for runs in sight.present.values()] == [[[0, MANY - 1]]]  # type: ignore[union-attr]
    assert len(asked) <= MANY // 100
    mappings = MappingTable.parse(task_maps(process)[1], device)
    assert len(mappings) == MANY, "control: so often it was asked one by one"


def test_a_daemon_of_an_earlier_version_gets_mappings_as_it_reads_them(crowded: tuple[int, tuple[int, int]]) -> None:
    process, device = crowded
    before, now = (pickle.loads(pickle.dumps(look(process, ask(device, False)))) for ask in (Mapped, MappedTable))
    assert isinstance(before.mappings, tuple)
    assert list(before.mappings) == now.mappings.mappings()
    assert len(before.mappings) == MANY
