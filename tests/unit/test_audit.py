"""Differences that two looks found are those that stay: put together, and in order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.pages.audit import Difference, in_both, joined

differences = st.lists(
    st.builds(
        lambda inode, first, pages, words: Difference(inode, first, first + pages, *words),
        st.integers(1, 2),
        st.integers(0, 12),
        st.integers(0, 3),
        st.sampled_from([("a", "b"), ("a", "c")]),
    )
)


def pages(found: list[Difference]) -> set[tuple[int, int, str, str]]:
    return {(one.inode, page, one.books, one.kernel) for one in found for page in range(one.first, one.last + 1)}


@given(differences)
def test_joined_says_the_same_in_as_few_lines_as_can_be(found: list[Difference]) -> None:
    together = joined(found)
    assert pages(together) == pages(found)
    assert [(one.inode, one.first) for one in together] == sorted((one.inode, one.first) for one in together)
    alike: dict[tuple[int, str, str], list[Difference]] = {}
    for one in together:
        alike.setdefault((one.inode, one.books, one.kernel), []).append(one)
    for lines in alike.values():
        assert all(line.last + 1 < after.first for line, after in pairwise(lines))


@given(differences, differences)
def test_in_both_are_the_pages_of_which_both_say_the_same(some: list[Difference], others: list[Difference]) -> None:
    both = in_both(some, others)
    assert pages(both) == pages(some) & pages(others)
    assert both == joined(both)
