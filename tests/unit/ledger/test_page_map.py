"""Page maps: sparse, trimmed, and counted with each move."""

import numpy as np
import pytest

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import ENTRY_BYTES, PAGES_PER_CHUNK, PAGES_PER_SHORT_SLOT, Cells
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ABSENT
from sharedfs.ledger.page_map import PageMap
from sharedfs.ledger.storage import MemoryRegion
from sharedfs.ledger.tenant import TenantId
from sharedfs.ledger.transitions import StepMemo

A, B = TenantId(1), TenantId(2)
CHUNK_BYTES = PAGES_PER_CHUNK * 4
SHORT_SLOT_BYTES = PAGES_PER_SHORT_SLOT * 4


@pytest.fixture
def memo() -> StepMemo:
    return StepMemo(SharingTable())


def test_a_charge_across_chunks(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    last = 2 * PAGES_PER_CHUNK + 4
    assert pages.charge(5, last, memo.of(A).charge) == [(ABSENT, 1, last - 4)]
    assert pages.resident_pages == last - 4
    assert next(pages.resident_runs(0, last + 9))[0] == 5
    pages.check()


def test_moves_are_told_by_raw_id(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 9, memo.of(A).charge)
    pages.charge(10, 14, memo.of(B).charge)
    assert sorted(pages.apply(5, 11, memo.of(B).touch)) == [(1, 3, 5)]
    assert pages.pages_by_class == {1: 5, 2: 5, 3: 5}
    assert pages.apply(5, 14, memo.of(B).touch) == ()
    pages.check()


def test_one_page_far_out_costs_one_page(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(1 << 50, 1 << 50, memo.of(A).charge)
    assert pages.map_bytes <= CHUNK_BYTES
    assert list(pages.resident_runs(0, 1 << 51)) == [(1 << 50, 1 << 50)]
    pages.check()


def test_maps_are_cut_after_the_last_resident_page(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 4 * PAGES_PER_CHUNK - 1, memo.of(A).charge)
    assert pages.map_bytes == 4 * ENTRY_BYTES
    pages.apply(4, 4, memo.of(B).touch)
    pages.apply(10, 1 << 40, memo.uncharge)
    assert pages.map_bytes == ENTRY_BYTES + SHORT_SLOT_BYTES
    pages.apply(2, 8, memo.uncharge)
    pages.apply(9, 9, memo.uncharge)
    assert pages.map_bytes == ENTRY_BYTES
    assert pages.pages_by_class == {1: 2}
    pages.check()


def test_a_chunk_without_a_page_is_not_there(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 2 * PAGES_PER_CHUNK - 1, memo.of(A).charge)
    pages.apply(PAGES_PER_CHUNK, PAGES_PER_CHUNK, memo.of(B).touch)
    assert pages.map_bytes == CHUNK_BYTES + 2 * ENTRY_BYTES
    for page in range(PAGES_PER_CHUNK):
        pages.apply(page, page, memo.uncharge)
    assert pages.map_bytes == CHUNK_BYTES + ENTRY_BYTES
    pages.check()


def test_births_count_new_pages_only(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 9, memo.of(A).charge)
    pages.charge(5, 12, memo.of(B).charge)
    assert pages.births == 13
    pages.apply(0, 0, memo.uncharge)
    assert pages.births == 13


def test_relabel_sums_what_becomes_one(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 9, memo.of(A).charge)
    pages.charge(10, 14, memo.of(B).charge)
    pages.relabel(pages.chunks(), np.array([0, 2, 2], dtype=np.uint32))
    assert pages.pages_by_class == {2: 15}
    pages.check()


@pytest.mark.parametrize(
    "damage", [lambda pages: pages.pages_by_class.update({1: 11}), lambda pages: pages._chunks.clear()]
)
def test_check_counts_from_the_pages_up(memo: StepMemo, damage) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 9, memo.of(A).charge)
    damage(pages)
    with pytest.raises(BrokenInvariant, match=r"^I1: pages by class are"):
        pages.check()


def test_check_finds_cells_that_should_have_been_cut(memo: StepMemo) -> None:
    pages = PageMap(Cells(MemoryRegion(), MemoryRegion(), MemoryRegion()), 1)
    pages.charge(0, 9, memo.of(A).charge)
    pages._cells.put_uniform(pages._chunks[0], ABSENT, 10)
    with pytest.raises(BrokenInvariant, match="not cut after its last resident page"):
        pages.check()
