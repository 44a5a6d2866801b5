"""Listings: open directories of the mount, read from the store in portions, each as large as the kernel asks for.

Offsets are tmpfs's own, so they mean what telldir(3) and seekdir(3) want of them while entries come and go. A listing
goes on where it stopped without seeking; entries that were read and did not fit wait for the next request.
"""

import ctypes
import os
from collections.abc import Iterator
from struct import Struct

from sharedfs.kernel import syscalls
from sharedfs.store import Node, Store

# linux_dirent64: d_ino, d_off, d_reclen, d_type; the name, a zero byte, and anything up to d_reclen
_DIRENT64 = Struct("<QqHB")
_BUFFER_BYTES = 32 << 10
_OPEN_LISTINGS = 512


Entry = tuple[int, int, int, bytes]
"""tmpfs's inode number, the offset where the next entry is found, type, name."""


class Listing:
    """One open directory, from opendir(3) to closedir(3)."""

    __slots__ = ("fd", "node", "offset", "waiting")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.fd = -1  # opened when it is first read
        self.offset = 0  # where the next request goes on, if nobody seeks
        self.waiting: list[Entry] = []  # read and not yet taken, the next one last


class Listings:
    """The open directories of the mount, by handle. Called with the store's lock held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listings: dict[int, Listing] = {}
        self._open: dict[int, Listing] = {}  # those with a descriptor, oldest first
        self._last_handle = 0
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)

    def open(self, node: Node) -> int:
        self._last_handle += 1
        self._listings[self._last_handle] = Listing(node)
        return self._last_handle

    def close(self, handle: int) -> None:
        listing = self._listings.pop(handle)
        if self._open.pop(handle, None) is not None:
            os.close(listing.fd)

    def close_all(self) -> None:
        for handle in list(self._listings):
            self.close(handle)

    def entries(self, handle: int, offset: int) -> tuple[Node, Iterator[Entry]]:
        """The directory of a handle and its entries from `offset` on.

        The entry that the iterator gave last counts as not taken, unless it was asked for another one.
        """
        listing = self._listings[handle]
        if listing.fd < 0:
            self._open_descriptor(handle, listing)
        if offset != listing.offset or offset == 0:
            os.lseek(listing.fd, offset, os.SEEK_SET)
            listing.offset = offset
            listing.waiting.clear()
        return listing.node, self._rest(listing)

    def _rest(self, listing: Listing) -> Iterator[Entry]:
        waiting = listing.waiting
        while True:
            if not waiting:
                waiting.extend(reversed(self._read(listing.fd)))
                if not waiting:
                    return
            yield waiting[-1]
            listing.offset = waiting.pop()[1]

    def _read(self, fd: int) -> list[Entry]:
        length = syscalls.getdents(fd, self._buffer)
        raw = self._buffer.raw[:length]
        entries, at, unpack, name_offset = [], 0, _DIRENT64.unpack_from, _DIRENT64.size
        while at < length:
            inode, offset, record_bytes, kind = unpack(raw, at)
            start = at + name_offset
            entries.append((inode, offset, kind, raw[start : raw.index(b"\0", start)]))
            at += record_bytes
        return entries

    def _open_descriptor(self, handle: int, listing: Listing) -> None:
        """Open the directory; where too many are open, the oldest is closed and opened anew when it is read again."""
        while len(self._open) >= _OPEN_LISTINGS:
            oldest = self._open.pop(next(iter(self._open)))
            os.close(oldest.fd)
            oldest.fd = -1
        listing.fd = self._store.open(listing.node, os.O_RDONLY | os.O_DIRECTORY)
        os.lseek(listing.fd, listing.waiting[0][1] if listing.waiting else listing.offset, os.SEEK_SET)
        self._open[handle] = listing
