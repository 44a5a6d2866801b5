r"""Names of files as text that can be printed, sent and typed. Names are bytes, and whoever makes one chooses them.

A backslash begins an escape: `\\` is itself, `\n`, `\t`, `\r` and `\x1b` are ASCII's, `\u202e` or `\U000e0001` another
letter that cannot be printed, and `\xff` a byte that is no UTF-8. So two names never look the same.
"""

import os
import re

_ESCAPED = re.compile(rb"\\(\\|[ntr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_SHORT = {b"\\": b"\\", b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def printable(raw: bytes) -> str:
    r"""A name or a path as text.

    >>> print(printable(b"red\x1b[31m/\xff\\"))
    red\x1b[31m/\xff\\
    """
    text = raw.decode(errors="surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter == "\\" or (letter < "\x80" and not letter.isprintable()):
        return letter.encode("unicode_escape").decode()
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if letter <= "\uffff" else f"\\U{ord(letter):08x}"


def raw_name(text: str) -> bytes:
    """The inverse of `printable`. A backslash that begins no escape stays."""
    return _ESCAPED.sub(_meant, os.fsencode(text))


def _meant(escape: re.Match[bytes]) -> bytes:
    code = escape[1]
    if code in _SHORT:
        return _SHORT[code]
    number = int(code[1:], 16)
    if code[:1] == b"x":
        return bytes([number])
    try:
        return chr(number).encode()
    except (ValueError, UnicodeEncodeError):  # no letter: half of a pair, or beyond the last
        return escape[0]
