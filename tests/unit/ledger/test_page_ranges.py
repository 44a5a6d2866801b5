"""Page ranges: merged, complemented, and refused when they are none."""

import doctest
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.ledger import page_ranges
from sharedfs.ledger.page_ranges import LAST_PAGE, PageRange, as_runs, check_range, chosen_in, gaps, merged, without

NOT_RANGES = [(-1, 0), (1, 0), (-2, -1), (0, LAST_PAGE + 1)]


def test_examples_in_the_module_hold() -> None:
    assert doctest.testmod(page_ranges) == doctest.TestResults(failed=0, attempted=8)


@pytest.mark.parametrize(("first_page", "last_page"), NOT_RANGES)
def test_not_a_range(first_page: int, last_page: int) -> None:
    with pytest.raises(ValueError, match=f"pages {first_page}..{last_page} are not a range"):
        check_range(first_page, last_page)
    with pytest.raises(ValueError, match="are not a range"):
        merged([(0, 1), (first_page, last_page)])


def test_merged_keeps_what_is_inside_another() -> None:
    assert merged([(0, 9), (2, 3), (10, 10), (12, 12)]) == [(0, 10), (12, 12)]
    assert merged([]) == []


def test_gaps_end_at_the_last_page() -> None:
    assert list(gaps([])) == [(0, LAST_PAGE)]
    assert list(gaps([(0, LAST_PAGE)])) == []
    assert list(gaps([(3, 4)], 3, 4)) == []


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))))


def pages_of(of: Iterable[Sequence[int]]) -> set[int]:
    return {page for first, last in of for page in range(first, last + 1)}


@given(RANGES, RANGES)
def test_arrays_of_ranges_are_what_lists_of_them_are(some: list[PageRange], others: list[PageRange]) -> None:
    runs = as_runs(some)
    assert runs.tolist() == [list(run) for run in merged(some)]
    rest = without(runs, as_runs(others)).tolist()
    assert pages_of(rest) == pages_of(some) - pages_of(others)
    assert rest == [list(run) for run in merged(map(tuple, rest))], "ascending and apart"


@given(RANGES, st.integers(0, 70), st.integers(1, 20))
def test_what_is_chosen_in_a_window(some: list[PageRange], first_page: int, pages: int) -> None:
    chosen = chosen_in(as_runs(some), first_page, pages)
    wanted = [page in pages_of(some) for page in range(first_page, first_page + pages)]
    assert wanted == ([chosen] * pages if isinstance(chosen, bool) else chosen.tolist())


def test_arrays_say_which_argument_was_wrong() -> None:
    assert as_runs([(0, LAST_PAGE)]).tolist() == [[0, LAST_PAGE]]
    assert chosen_in(as_runs([(0, LAST_PAGE)]), 1 << 40, 1024) is True
    with pytest.raises(ValueError, match="beyond"):
        as_runs([(0, LAST_PAGE + 1)])
    for wrong in NOT_RANGES[:-1]:
        with pytest.raises(ValueError, match="are not a range"):
            as_runs([(0, 1), wrong])
