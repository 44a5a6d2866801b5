"""What limits of memory leave a pool, beside a slow oracle that tries every size."""

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.linux.memory_limits import Reading
from sharedfs.storage.bound import Bound, bound

PAGES = st.integers(0, 60)
LIMITS = st.lists(st.builds(Reading, st.sampled_from(["/a", "/b"]), PAGES, PAGES, PAGES), max_size=4)


def most_by_trying(size: int, used: int, limits: list[Reading], reserve: int) -> int:
    """The largest size at which the files, filled up, leave every limit its reserve; what is used stays."""

    def fits(held: int) -> bool:
        more = held - used
        return all(
            max(0, limit.usage_bytes - limit.cache_bytes) + more + reserve <= limit.limit_bytes for limit in limits
        )

    return max([held for held in range(used, size + 1) if fits(held)], default=used)


@given(size=PAGES, used=PAGES, limits=LIMITS, reserve=st.integers(0, 20))
def test_the_bound_is_what_fits_under_every_limit(size: int, used: int, limits: list[Reading], reserve: int) -> None:
    used = min(used, size)
    found = bound(size, used, limits, reserve)
    assert found.bytes == most_by_trying(size, used, limits, reserve)
    assert used <= found.bytes <= size
    assert (found.by == "size") == (found.bytes == size)
    assert (found.room_bytes is None) == (not limits)


def test_without_limits_only_the_size_counts() -> None:
    assert bound(100, 7, [], 64) == Bound(100, "size", None)


def test_pages_in_no_file_take_room_from_files() -> None:
    """Pinned and cut off: the limit's usage stays, the files hold nothing."""
    assert bound(1000, 0, [Reading("/a", 200, 150)], 20) == Bound(30, "/a", 30)
    assert bound(1000, 0, [Reading("/a", 200, 190)], 20) == Bound(0, "/a", -10)
