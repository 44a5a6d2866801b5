"""Where a file's content is when it is not in the pool: on disk (`pages/spill.py`), or gone to make room."""

import os
from errno import ESTALE

from sharedfs.linux import syscalls
from sharedfs.pages.spill import Spill
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

GIVEN_WAY_MARK = b"trusted.sharedfs.given_way"
"""On a file that was removed to make room (`maintenance/giving_way.py`): its pages are gone or go."""


class ContentOnDisk(Exception):
    """The file `inode` was spilled: `Sizes.bring_back` first, then ask again."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


class Content:
    """Call with the store's lock held."""

    def __init__(self, store: Store, spill: Spill) -> None:
        self._store = store
        self._spill = spill

    def want(self, inode: int) -> None:
        """Raises ContentOnDisk when the file was spilled."""
        if inode in self._spill:
            raise ContentOnDisk(inode)

    def has_given_way(self, node: Node) -> bool:
        """Of a file that has no name: whether it was removed to make room, and its content with it."""
        return syscalls.has_xattr(self._store.descriptor_path(node), GIVEN_WAY_MARK)

    def refuse_given_way(self, node: Node) -> None:
        """Raises ESTALE for a file that has: nobody may use it anew."""
        if node.inode in self._store.removed and self.has_given_way(node):
            raise OSError(ESTALE, os.strerror(ESTALE))
