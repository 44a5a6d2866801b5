"""Sizes as people write them and as people read them; inside, bytes are always plain integers."""

import os
import re
from dataclasses import dataclass

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
UNLIMITED_BYTES = 1 << 62
"""More than any file, and the least that the kernel of cgroup v1 may show where there is no limit."""

_SUFFIXES = "KMGT"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])?", re.IGNORECASE)
_SIZE = re.compile(rf"(\d+)(?:([{_SUFFIXES}])(?:i?B)?)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `text`, a whole number with an optional suffix K, M, G or T (powers of 1024).

    >>> parse_size("2G")
    2147483648
    >>> parse_size("4096")
    4096

    Raises ValueError when `text` is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T, such as 512M")
    number, suffix = match.groups()
    power = _SUFFIXES.index(suffix.upper()) + 1 if suffix else 0
    return int(number) << (10 * power)


def parse_duration(text: str) -> int:
    """Seconds of `text`, a whole number with an optional suffix s, m, h or d.

    >>> parse_duration("90"), parse_duration("1h")
    (90, 3600)

    Raises ValueError when `text` is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write seconds, or a number with s, m, h or d, such as 1h")
    number, suffix = match.groups()
    return int(number) * _SECONDS[(suffix or "s").lower()]


@dataclass(frozen=True, slots=True)
class Part:
    """So many bytes, or so many percent of a whole that is known later."""

    number: int
    is_percent: bool = False

    def of(self, whole_bytes: int) -> int:
        return whole_bytes * self.number // 100 if self.is_percent else self.number

    def __str__(self) -> str:
        return f"{self.number}%" if self.is_percent else str(self.number)


def parse_part(text: str) -> Part:
    """A size of less than 4 EiB, or percents from 0% to 100%.

    >>> parse_part("512M").of(1 << 30) == parse_part("50%").of(1 << 30)
    True

    Raises ValueError when `text` is neither.
    """
    if not text.endswith("%"):
        size_bytes = parse_size(text)
        if size_bytes >= UNLIMITED_BYTES:
            raise ValueError(f"{text} is more than any pool has: write a size such as 512M, or 0% to 100%")
        return Part(size_bytes)
    if not re.fullmatch(r"\d{1,3}%", text) or int(text[:-1]) > 100:
        raise ValueError(f"{text!r} is no part: write 0% to 100%, or a size such as 512M")
    return Part(int(text[:-1]), is_percent=True)


def format_size(size_bytes: int) -> str:
    """`size_bytes` for a person: three significant digits and a binary suffix.

    >>> format_size(0), format_size(4096), format_size(1536 * 1024)
    ('0', '4.00K', '1.50M')
    """
    size = float(abs(size_bytes))
    sign = "-" if size_bytes < 0 else ""
    if size < 1024:
        return f"{size_bytes}"
    for suffix in _SUFFIXES:
        size /= 1024
        if size < 1024 or suffix == _SUFFIXES[-1]:
            break
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{sign}{size:.{digits}f}{suffix}"
