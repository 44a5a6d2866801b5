"""The two words that the state keeps of an inode while the kernel knows it: their layout, which outlives daemons.

    first    look-ups: how often the kernel was told of the inode, less its FORGETs
    second   bits 0-29   opens
             bit 30      nobody has it open for writing, or a mapping to write through
             bit 31      a mapping may outlive opens
             bits 32-62  the backing id of FUSE passthrough, 0 for none
             bit 63      opened for reading, too: a mapping can be made, or one is left

The journal has them with an answer, and the inode table until the inode is forgotten. `pool/schema.py` says what a
change of this takes.
"""

from sharedfs.storage.node import Node

Words = tuple[int, int, int]
"""Of an inode's number, and its two words."""

_OPENS = (1 << 30) - 1
_STILL, _MAY_BE_MAPPED, _BACKING_ID, _MAPPABLE = 30, 31, 32, 63  # bits, and where bits begin
_BACKING_IDS = (1 << 31) - 1


def words_of(node: Node) -> Words:
    flags = node.still << _STILL | node.may_be_mapped << _MAY_BE_MAPPED | node.mappable << _MAPPABLE
    return node.inode, node.lookups, node.opens | flags | node.backing_id << _BACKING_ID


def node_of(inode: int, handle: bytes, first: int, second: int) -> Node:
    node = Node(inode, handle)
    node.lookups = first
    node.opens = second & _OPENS
    node.still = bool(second >> _STILL & 1)
    node.may_be_mapped = bool(second >> _MAY_BE_MAPPED & 1)
    node.backing_id = second >> _BACKING_ID & _BACKING_IDS
    node.mappable = bool(second >> _MAPPABLE)
    return node
