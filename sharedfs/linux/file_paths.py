"""Where an open file is in its mount, also when its path is longer than the kernel tells in one piece.

readlink(2) of /proc/self/fd/N fails with ENAMETOOLONG beyond PATH_MAX, which a tenant can reach with nested
directories. A line of /proc/self/maps has no such bound: a mapping of one page, made for the moment, shows the path.
"""

import os
from errno import ENAMETOOLONG

from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.huge_pages import mapped


def short_path(fd: int) -> bytes | None:
    """The path of any descriptor, below the root of its mount; None when it is longer than PATH_MAX."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError as error:
        if error.errno != ENAMETOOLONG:
            raise
        return None


def long_path(fd: int) -> bytes:
    """The path of a regular file that is open for reading, of any length. O(length), and slow.

    A newline in a name is shown as the four characters \\012. Raises OSError when the file cannot be mapped.
    """
    with mapped(fd, 0, PAGE_BYTES, read_only=True) as address:
        line = b"%x-" % address
        with open("/proc/self/maps", "rb") as maps:
            # start-end perms offset device inode, spaces, and the path to the end of the line
            found = next((text for text in maps if text.startswith(line)), b"")
    return found.rstrip(b"\n").partition(b"/")[2].join((b"/", b""))
