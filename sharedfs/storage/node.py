"""One inode of the store: what is known of it while the kernel has heard of it."""

import stat

SET_ID_BITS = stat.S_ISUID | stat.S_ISGID

Words = tuple[int, int, int]
"""Of an inode's number, and what the node table keeps of it."""


class Node:
    """An inode of the store that the kernel has heard of.

    All but `handle` and `set_id` outlive the daemon: who changes one tells `Inodes.changed`.
    """

    __slots__ = ("backing_id", "handle", "inode", "lookups", "mappable", "may_be_mapped", "opens", "set_id", "still")

    def __init__(self, inode: int, handle: bytes, first: int = 0, second: int = 0) -> None:
        self.inode = inode
        self.handle = handle
        self.lookups = first  # how often the kernel was told of it, less its FORGETs
        self.opens = second & 0x3FFFFFFF
        self.still = bool(second >> 30 & 1)  # nobody has it open for writing, or a mapping to write through
        self.may_be_mapped = bool(second >> 31 & 1)  # a mapping may outlive opens, and changes times without asking us
        self.backing_id = second >> 32 & 0x7FFFFFFF  # of FUSE passthrough, 0 for none
        self.mappable = bool(second >> 63)  # opened for reading, too: a mapping can be made, or one is left
        self.set_id = False  # may have set-id bits: a write must clear them

    @property
    def words(self) -> Words:
        flags = self.still << 30 | self.may_be_mapped << 31 | self.mappable << 63
        second = self.opens | flags | self.backing_id << 32
        return self.inode, self.lookups, second
