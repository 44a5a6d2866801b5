"""Listings: open directories of the mount, read from the store in portions, each as large as the kernel asks for.

Offsets are tmpfs's own, so they mean what telldir(3) and seekdir(3) want of them while entries come and go. A portion
is read so that all of it fits in the answer: a listing goes on where it stopped, and nobody seeks. A listing that was
opened from a daemon before us goes on, too: its handle is not known here, but its inode and its offset are.
"""

import ctypes
import os

from sharedfs.linux import syscalls
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

_BUFFER_BYTES = 64 << 10
_OPEN_LISTINGS = 512


class Listing:
    """One open directory, from opendir(3) to closedir(3)."""

    __slots__ = ("fd", "flags", "node", "offset")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.fd = -1  # opened when it is first read
        self.offset = 0  # where `fd` is, but for the first portion
        self.flags = 0  # what it is opened with besides


class Listings:
    """The open directories of the mount, by handle. Called with the store's lock held."""

    def __init__(self, store: Store, incarnation: int = 0) -> None:
        """`incarnation` is another number for each daemon of a mount, so that their handles are not mistaken."""
        self._store = store
        self._listings: dict[int, Listing] = {}
        self._open: dict[int, Listing] = {}  # those with a descriptor, oldest first
        self._last_handle = incarnation << 40
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)

    def open(self, node: Node) -> int:
        self._last_handle += 1
        self._listings[self._last_handle] = Listing(node)
        return self._last_handle

    def close(self, handle: int) -> None:
        listing = self._listings.pop(handle, None)
        if listing is not None and self._open.pop(handle, None) is not None:
            os.close(listing.fd)

    def close_all(self) -> None:
        for handle in list(self._listings):
            self.close(handle)

    def read(self, handle: int, inode: int, offset: int, limit: int, flags: int = 0) -> tuple[Listing, bytes]:
        """The listing of a handle of directory `inode`, and its getdents64 records from `offset` on; none at the end.

        They are at most `limit` bytes. `flags` are those of the caller's open directory, of which O_NOATIME counts.
        The caller sets `Listing.offset` to where the next portion begins.
        """
        listing = self._listings.get(handle)
        if listing is None:
            listing = self._listings[handle] = Listing(self._store.node(inode))
        if listing.fd >= 0 and listing.flags != flags & os.O_NOATIME:  # fcntl(2) has changed it
            self._close_descriptor(handle)
        if listing.fd < 0:
            listing.flags = flags & os.O_NOATIME
            self._open_descriptor(handle, listing)
        if offset != listing.offset or offset == 0:  # from the start: names that came since are to be seen
            os.lseek(listing.fd, offset, os.SEEK_SET)
            listing.offset = offset
        length = syscalls.getdents(listing.fd, self._buffer, min(limit, _BUFFER_BYTES))
        return listing, ctypes.string_at(self._buffer, length)

    def make_room(self) -> None:
        """Close all descriptors, for a process that has none left."""
        for handle in list(self._open):
            self._close_descriptor(handle)

    def _close_descriptor(self, handle: int) -> None:
        listing = self._open.pop(handle)
        os.close(listing.fd)
        listing.fd = -1

    def _open_descriptor(self, handle: int, listing: Listing) -> None:
        """Open the directory; where too many are open, the oldest is closed and opened anew when it is read again."""
        while len(self._open) >= _OPEN_LISTINGS:
            self._close_descriptor(next(iter(self._open)))
        listing.fd = self._store.open(listing.node, os.O_RDONLY | os.O_DIRECTORY | listing.flags)
        os.lseek(listing.fd, listing.offset, os.SEEK_SET)
        self._open[handle] = listing
