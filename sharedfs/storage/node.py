"""One inode of the store: what is known of it while the kernel has heard of it."""

import stat

SET_ID_BITS = stat.S_ISUID | stat.S_ISGID


class Node:
    """An inode of the store that the kernel has heard of.

    All but `handle` and `set_id` outlive the daemon (`storage/node_words.py`): who changes one tells `Inodes.changed`.
    """

    __slots__ = ("backing_id", "handle", "inode", "lookups", "mappable", "may_be_mapped", "opens", "set_id", "still")

    def __init__(self, inode: int, handle: bytes) -> None:
        self.inode = inode
        self.handle = handle
        self.lookups = 0  # how often the kernel was told of it, less its FORGETs
        self.opens = 0
        self.still = False  # nobody has it open for writing, or a mapping to write through
        self.may_be_mapped = False  # a mapping may outlive opens, and changes times without asking us
        self.backing_id = 0  # of FUSE passthrough, 0 for none
        self.mappable = False  # opened for reading, too: a mapping can be made, or one is left
        self.set_id = False  # may have set-id bits: a write must clear them
