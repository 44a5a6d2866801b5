"""Sizes as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.common.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1", 1),
        ("4096", 4096),
        ("1K", 1 << 10),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("3T", 3 << 40),
        ("2g", 2 << 30),
        ("2GB", 2 << 30),
        ("2GiB", 2 << 30),
        (" 7k ", 7 << 10),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "+1", "1.5G", "1 G", "1P", "0x10", "1e9", "12B", "1KK", "one", "1\n2"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: .* such as 512M"):
        parse_size(text)


@given(st.integers(0, (1 << 60)))
def test_a_formatted_size_is_close_to_the_size(size_bytes: int) -> None:
    text = format_size(size_bytes)
    value = float(text[:-1]) * (1 << 10 * ("KMGT".index(text[-1]) + 1)) if text[-1] in "KMGT" else float(text)
    assert abs(value - size_bytes) <= size_bytes * 0.006
    assert format_size(-size_bytes) == (f"-{text}" if size_bytes else "0")


def test_every_size_that_is_written_whole_is_read_back() -> None:
    for power, suffix in enumerate("KMGT", start=1):
        assert parse_size(f"17{suffix}") == 17 << 10 * power
