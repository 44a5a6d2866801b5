"""Inclusive page ranges as pairs (first_page, last_page): checked, merged, complemented. Pure.

Hundreds of thousands of them are `Runs`, an array: Python would hold its lock for a tenth of a second over a list of
as many pairs, and all other threads would wait.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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


def page_parts(run: PageRange, most: int) -> Iterator[PageRange]:
    """A range in parts of at most so many pages.

    >>> list(page_parts((2, 9), 4))
    [(2, 5), (6, 9)]
    """
    for first_page in range(run[0], run[1] + 1, most):
        yield first_page, min(first_page + most - 1, run[1])


def byte_parts(runs: Iterable[PageRange], page_bytes: int, size: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """The bytes (end exclusive) of page runs within a file's `size`, at most `part_bytes` at a time. O(parts).

    >>> list(byte_parts([(0, 2), (5, 9)], 4096, 22000, 8192))
    [(0, 8192), (8192, 12288), (20480, 22000)]
    """
    for first_page, last_page in runs:
        end = min((last_page + 1) * page_bytes, size)
        for start in range(first_page * page_bytes, end, part_bytes):
            yield start, min(start + part_bytes, end)


Item = TypeVar("Item")


def batched(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Parts of at most so many items, in order.

    >>> list(batched([1, 2, 3], 2))
    [[1, 2], [3]]
    """
    for start in range(0, len(items), most):
        yield items[start : start + most]


Runs = NDArray[np.int64]
"""Ascending ranges that neither overlap nor adjoin: a row each, of the first page and the last one."""

NO_RUNS: Runs = np.empty((0, 2), np.int64)


def as_runs(ranges: Sequence[PageRange] | Runs) -> Runs:
    """As `merged`, for very many ranges. O(n), O(n log n) when they are not in order.

    >>> as_runs([(7, 9), (0, 2), (3, 4), (8, 12)]).tolist()
    [[0, 4], [7, 12]]
    """
    if not len(ranges):
        return NO_RUNS
    try:
        pages = np.asarray(ranges, np.int64).reshape(-1, 2)
    except OverflowError as error:
        raise ValueError(f"a page number beyond {LAST_PAGE}") from error
    firsts, lasts = pages[:, 0], pages[:, 1]
    wrong = np.flatnonzero((firsts < 0) | (firsts > lasts))
    if len(wrong):
        check_range(*pages[wrong[0]].tolist())
    if (firsts[1:] - 1 > lasts[:-1]).all():
        return pages
    pages = pages[np.argsort(firsts, kind="stable")]
    lasts = np.maximum.accumulate(pages[:, 1])
    starts = np.flatnonzero(np.concatenate(([True], pages[1:, 0] - 1 > lasts[:-1])))
    ends = np.concatenate((starts[1:], [len(pages)])) - 1
    return np.stack((pages[starts, 0], lasts[ends]), axis=1)


def without(runs: Runs, others: Runs) -> Runs:
    """The pages of `runs` that are not in `others`. O(n log n).

    >>> without(as_runs([(0, 4), (7, 12)]), as_runs([(3, 8), (12, 20)])).tolist()
    [[0, 2], [9, 11]]
    """
    edges = np.concatenate((runs[:, 0], runs[:, 1] + 1, others[:, 0], others[:, 1] + 1))
    ones, more = np.ones(len(runs), np.int64), np.ones(len(others), np.int64)
    order = np.argsort(edges, kind="stable")
    edges = edges[order]
    inside = np.cumsum(np.concatenate((ones, -ones, 0 * more, 0 * more))[order])
    covered = np.cumsum(np.concatenate((0 * ones, 0 * ones, more, -more))[order])
    chosen = np.flatnonzero((inside[:-1] > 0) & (covered[:-1] == 0) & (edges[1:] > edges[:-1]))
    return as_runs(np.stack((edges[chosen], edges[chosen + 1] - 1), axis=1))


def chosen_in(runs: Runs, first_page: int, pages: int) -> NDArray[np.bool_] | bool:
    """Which of the `pages` pages from `first_page` on are in `runs`; True or False when it is all or none of them."""
    begin = int(np.searchsorted(runs[:, 1], first_page))
    end = int(np.searchsorted(runs[:, 0], first_page + pages - 1, side="right"))
    if begin >= end:
        return False
    part = np.clip(runs[begin:end] - first_page, -1, pages)
    if end - begin == 1 and part[0, 0] <= 0 and part[0, 1] >= pages - 1:
        return True
    steps = np.zeros(pages + 1, np.int8)
    steps[np.maximum(part[:, 0], 0)] += 1
    steps[np.minimum(part[:, 1], pages - 1) + 1] -= 1
    return np.cumsum(steps[:pages], dtype=np.int8).astype(bool)
