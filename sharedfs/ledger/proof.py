"""Proof that the books of a pool agree with themselves, from the pages up."""

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.chunks import Cells
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.page_maps import PageMaps
from sharedfs.ledger.transitions import StepMemo


def check_books(table: SharingTable, steps: StepMemo, files: PageMaps, cells: Cells) -> None:
    """Raise BrokenInvariant, with the state that contradicts them, unless page maps and classes agree. O(pages)."""
    table.check()
    steps.check()
    by_id: dict[int, int] = {}
    for file, pages in files.all():
        if not pages.pages_by_class:
            raise BrokenInvariant(f"I1: file {file} is in the books without a page")
        pages.check()
        for raw, count in pages.pages_by_class.items():
            canonical = table.alias[raw]
            by_id[canonical] = by_id.get(canonical, 0) + count
    posted = {raw: count for raw in sorted(by_id) if (count := table.pages_of(raw))}
    if by_id != posted or sum(by_id.values()) != table.resident_pages:
        raise BrokenInvariant(
            f"I1: the page maps have {by_id}, the table {posted}, resident {table.resident_pages} pages"
        )
    units = {file: pages.unit_pages for file, pages in files.all() if pages.unit_pages > 1}
    map_bytes = sum(pages.map_bytes for pages in files.made.values())
    if (files.units, cells.used_bytes) != (units, map_bytes):
        raise BrokenInvariant(f"I1: the books say {files.units}, {cells.used_bytes} bytes; it is {units}, {map_bytes}")
