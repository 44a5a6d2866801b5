"""Names of files as text: printable, never the same for two names, and back again."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharedfs.common.names import printable, raw_name

names = st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=20).map(
    lambda text: text.encode(errors="surrogatepass")
)


@given(names)
@example(b"\xc2\x85")  # U+0085, which is no byte 0x85
@example(b"\x85")
@example(b"\xed\xa0\x80")
@example(rb"\x1b")
@example("\u202e\U000e0001".encode())
def test_every_name_comes_back(name: bytes) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert raw_name(shown) == name


@pytest.mark.parametrize("text", ["\\ud800", "\\U00110000", "\\q", "\\", "\\x1", "\\xZZ"])
def test_what_is_no_escape_stays(text: str) -> None:
    assert raw_name(text) == os.fsencode(text)
