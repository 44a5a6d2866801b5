"""Page ranges: merged, complemented, and refused when they are none."""

import doctest

import pytest

from sharedfs.model import ranges
from sharedfs.model.ranges import LAST_PAGE, check_range, flat, gaps, merged

NOT_RANGES = [(-1, 0), (1, 0), (-2, -1), (0, LAST_PAGE + 1)]


def test_examples_in_the_module_hold() -> None:
    assert doctest.testmod(ranges) == doctest.TestResults(failed=0, attempted=4)


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


def test_flat_says_which_argument_was_wrong() -> None:
    assert flat([(1, 2), (4, 4)]).tolist() == [1, 2, 4, 4]
    with pytest.raises(ValueError, match="beyond"):
        flat([(0, LAST_PAGE + 1)])
