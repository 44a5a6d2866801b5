"""The operator's caps: the lowest mark counts, for a tenant and for all cgroups above it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.settlement.caps import capped, caps_in
from sharedfs.common.units import Part, parse_part
from sharedfs.linux.cgroups import CgroupRef

A, B, C = CgroupRef("/job/a", 1), CgroupRef("/job/b", 2), CgroupRef("/c", 3)
PATHS = ["/job", "/job/a", "/job/b", "/c", "/other"]
sizes = st.integers(0, 1000)


def test_a_cap_for_one_pool_wins_over_that_for_each() -> None:
    orders = {("/job", None): Part(50, is_percent=True), ("/job", "p"): Part(10), ("/c", None): Part(7)}
    assert caps_in("p", 1000, orders) == {"/job": 10, "/c": 7}
    assert caps_in("q", 1000, orders) == {"/job": 500, "/c": 7}
    assert caps_in("q", None, orders) == {"/c": 7}, "percents of a size that is not told"


@given(
    shares=st.tuples(sizes, sizes, sizes),
    marks=st.tuples(*[st.none() | sizes] * 3),
    caps=st.dictionaries(st.sampled_from(PATHS), sizes),
)
def test_until_where_each_may_grow(
    shares: tuple[int, int, int], marks: tuple[int | None, ...], caps: dict[str, int]
) -> None:
    even = dict(zip((A, B, C), shares, strict=True))
    told = capped(dict(zip((A, B, C), marks, strict=True)), even, caps)
    for tenant, mark in zip((A, B, C), marks, strict=True):
        at_least, until = even[tenant], told[tenant]
        bounding = [path for path in caps if tenant.path == path or tenant.path.startswith(path + "/")]
        assert (until is None) == (mark is None and not bounding)
        if until is None:
            continue
        assert mark is None or until <= mark
        for path in bounding:  # if it alone grows as far as it may, none of the caps above it is passed by that
            below = _below(even, path)
            assert below + max(0, until - at_least) <= max(caps[path], below)
        if mark is None or until < mark:
            assert until == max(0, min(at_least + caps[path] - _below(even, path) for path in bounding))


def _below(even: dict[CgroupRef, int], path: str) -> int:
    return sum(share for one, share in even.items() if one.path == path or one.path.startswith(path + "/"))


@pytest.mark.parametrize("text", ["4611686018427387904", "9999999999999999999999", "4194304T"])
def test_a_size_that_no_pool_has_is_no_cap(text: str) -> None:
    """SQLite has no such numbers: the controller answered 500."""
    with pytest.raises(ValueError, match="more than any pool has"):
        parse_part(text)
    assert parse_part("4611686018427387903").number == (1 << 62) - 1
