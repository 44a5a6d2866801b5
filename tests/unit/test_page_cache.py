"""Which pages a file has: in a file of shared memory, which is what a pool's files are."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import LAST_PAGE
from sharedfs.linux import cachestat, huge_pages

pytestmark = pytest.mark.skipif(not cachestat.can_be_asked(), reason="no cachestat(2)")

pages = st.integers(0, 3000)


@settings(max_examples=60)
@given(written=st.sets(pages, max_size=30), allocated=st.tuples(pages, pages), asked=st.tuples(pages, pages))
def test_runs_are_the_pages_of_a_file(written: set[int], allocated: tuple[int, int], asked: tuple[int, int]) -> None:
    fd = os.memfd_create("test")
    try:
        for page in written:
            os.pwrite(fd, b"x", page * PAGE_BYTES)
        first, last = min(allocated), max(allocated)
        os.posix_fallocate(fd, first * PAGE_BYTES, (last - first + 1) * PAGE_BYTES)
        there = written | set(range(first, last + 1))
        for low, high in ((min(asked), max(asked)), (0, LAST_PAGE)):
            runs = cachestat.resident_runs(fd, low, high)
            assert {page for run in runs for page in range(run[0], run[1] + 1)} == {
                page for page in there if low <= page <= high
            }
            assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))
    finally:
        os.close(fd)


def test_what_the_host_says_of_huge_pages(tmp_path: Path) -> None:
    assert huge_pages.page_bytes(tmp_path / "none") is None
    size, enabled = tmp_path / "size", tmp_path / "enabled"
    size.write_text("2097152\n")
    assert huge_pages.page_bytes(size) == 2 << 20
    enabled.write_text("always within_size advise [never] deny force\n")
    assert not huge_pages.are_denied(enabled)
    enabled.write_text("always within_size advise never [deny] force\n")
    assert huge_pages.are_denied(enabled)
