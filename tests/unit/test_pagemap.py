"""What page tables have of a mapping, in both ways to ask: what a private one has of its own is not the file's."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.pagemap import PagemapReader

PAGES = 64


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("file")
    os.posix_fallocate(fd, 0, PAGES * PAGE_BYTES)
    yield fd
    os.close(fd)


def present_pages(mapping: mmap.mmap, *, shared: bool, use_scan: bool) -> set[int]:
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        reader = PagemapReader(use_scan=use_scan)
        found = reader.present(pagemap, start, start + PAGES * PAGE_BYTES, shared=shared)
    finally:
        os.close(pagemap)
    return {(at - start) // PAGE_BYTES for first, end in found for at in range(first, end, PAGE_BYTES)}


@pytest.mark.parametrize("use_scan", [True, False], ids=["PAGEMAP_SCAN", "entries"])
def test_a_shared_mapping_has_what_was_touched(file: int, use_scan: bool) -> None:
    with mmap.mmap(file, PAGES * PAGE_BYTES) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)  # no page around the one that is touched
        touched = {0, 1, 5, 40, PAGES - 1}
        for page in touched:
            mapping[page * PAGE_BYTES] = 1
        assert present_pages(mapping, shared=True, use_scan=use_scan) == touched


@pytest.mark.parametrize("use_scan", [True, False], ids=["PAGEMAP_SCAN", "entries"])
def test_a_private_mapping_has_what_it_did_not_write(file: int, use_scan: bool) -> None:
    with mmap.mmap(file, PAGES * PAGE_BYTES, mmap.MAP_PRIVATE) as mapping:
        read = sum(mapping[page * PAGE_BYTES] for page in range(PAGES))
        for page in range(0, PAGES, 3):
            mapping[page * PAGE_BYTES] = 1
        assert read == 0
        written = set(range(0, PAGES, 3))
        assert present_pages(mapping, shared=False, use_scan=use_scan) == set(range(PAGES)) - written
