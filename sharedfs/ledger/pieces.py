"""What is little enough of a file to be done at once, with the lock of the books held: half a millisecond."""

from collections.abc import Iterator, Sequence

from sharedfs.ledger.chunks import PAGES_PER_CHUNK
from sharedfs.ledger.page_map import PageMap
from sharedfs.ledger.page_ranges import batched

PIECE_CHUNKS = 16
"""A piece of long work: of so many chunks, which takes half a millisecond when each page of them differs."""

_MANY_CLASSES = 64  # of a file: then fewer pages are a piece, for each may make a class
_PIECE_PAGES = 64


def is_more_than_a_piece(pages: PageMap) -> bool:
    """O(1)."""
    return pages.chunk_count > PIECE_CHUNKS or len(pages.pages_by_class) > _MANY_CLASSES


def pieces_of(pages: PageMap) -> Iterator[tuple[Sequence[int], range]]:
    """Some chunks, and which pages of each: little enough to be done at once."""
    chunks = pages.chunks()
    if len(pages.pages_by_class) <= _MANY_CLASSES:
        for part in batched(chunks, PIECE_CHUNKS):
            yield part, range(PAGES_PER_CHUNK)
    else:
        for index in chunks:
            for start in range(0, PAGES_PER_CHUNK, _PIECE_PAGES):
                yield (index,), range(start, start + _PIECE_PAGES)
