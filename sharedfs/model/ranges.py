"""Inclusive page ranges as pairs (first_page, last_page): checked, merged, complemented. Pure."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain

PageRange = tuple[int, int]

LAST_PAGE = (1 << 63) - 1
"""Beyond the last page of any file: file offsets are signed 64-bit bytes, and a page is more than a byte."""


def check_range(first_page: int, last_page: int) -> None:
    """Raise ValueError unless 0 <= first_page <= last_page <= LAST_PAGE."""
    if not 0 <= first_page <= last_page <= LAST_PAGE:
        raise ValueError(f"pages {first_page}..{last_page} are not a range: need 0 <= first <= last <= {LAST_PAGE}")


def merged(ranges: Iterable[PageRange]) -> list[PageRange]:
    """The same pages in ascending ranges that neither overlap nor adjoin. O(n log n).

    >>> merged([(7, 9), (0, 2), (3, 4), (8, 12)])
    [(0, 4), (7, 12)]

    Raises ValueError when one of `ranges` is not a range.
    """
    result: list[PageRange] = []
    for first_page, last_page in sorted(ranges):
        check_range(first_page, last_page)
        if result and first_page <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last_page))
        else:
            result.append((first_page, last_page))
    return result


def gaps(runs: Iterable[PageRange], first_page: int = 0, last_page: int = LAST_PAGE) -> Iterator[PageRange]:
    """What ascending, disjoint `runs` leave of first_page..last_page, ascending. O(n).

    >>> list(gaps([(0, 4), (7, 12)], 0, 20))
    [(5, 6), (13, 20)]
    """
    for run_first, run_last in runs:
        if first_page < run_first:
            yield first_page, run_first - 1
        first_page = run_last + 1
    if first_page <= last_page:
        yield first_page, last_page


def common(some: Iterable[PageRange], others: Iterable[PageRange]) -> list[PageRange]:
    """The pages that are in both of two ascending lists of disjoint ranges. O(n).

    >>> common([(0, 4), (7, 12)], [(3, 8), (12, 20)])
    [(3, 4), (7, 8), (12, 12)]
    """
    result: list[PageRange] = []
    rest = iter(others)
    other = next(rest, None)
    for first_page, last_page in some:
        while other is not None and other[0] <= last_page:
            if other[1] >= first_page:
                result.append((max(first_page, other[0]), min(last_page, other[1])))
            if other[1] > last_page:
                break
            other = next(rest, None)
    return result


def byte_parts(runs: Iterable[PageRange], page_bytes: int, size: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """The bytes (end exclusive) of page runs within a file's `size`, at most `part_bytes` at a time. O(parts).

    >>> list(byte_parts([(0, 2), (5, 9)], 4096, 22000, 8192))
    [(0, 8192), (8192, 12288), (20480, 22000)]
    """
    for first_page, last_page in runs:
        end = min((last_page + 1) * page_bytes, size)
        for start in range(first_page * page_bytes, end, part_bytes):
            yield start, min(start + part_bytes, end)


def flat(ranges: Iterable[PageRange]) -> "array[int]":
    """The same numbers in 16 bytes a range, to remember and compare. O(n).

    Raises ValueError when one of them is no page number of any file.
    """
    try:
        return array("q", chain.from_iterable(ranges))
    except OverflowError as error:
        raise ValueError(f"a page number beyond {LAST_PAGE}") from error
