"""What is left of an inode that the kernel forgot: the generation in its file handle, four bytes an inode.

NFS servers and backup programs keep handles of a mount, which the kernel makes of our node number. When it has
forgotten that inode it asks for the number; with the generation it becomes a tmpfs handle again. Numbers rise one by
one, so they are kept in blocks; a block is dropped when its last inode is gone.
"""

from array import array
from struct import Struct

# struct file_handle of tmpfs: handle_bytes, handle_type; generation, inode number
_HANDLE = Struct("<IiIQ")
_HANDLE_BYTES, _HANDLE_TYPE = 12, 1
_BLOCK = 1024
_NONE = 0  # one inode in four billion has this generation: its handles do not survive the kernel's forgetting


class Generations:
    """Generations by inode number."""

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}
        self._in_use: dict[int, int] = {}

    def remember(self, handle: bytes) -> None:
        """Keep what `handle` says. Not a handle of tmpfs as it is today: nothing is kept."""
        if len(handle) != _HANDLE.size:
            return
        size, kind, generation, inode = _HANDLE.unpack(handle)
        if (size, kind) == (_HANDLE_BYTES, _HANDLE_TYPE):
            self._set(inode, generation)

    def handle(self, inode: int) -> bytes | None:
        """The file handle of a remembered inode."""
        block = self._blocks.get(inode // _BLOCK)
        generation = _NONE if block is None else block[inode % _BLOCK]
        return None if generation == _NONE else _HANDLE.pack(_HANDLE_BYTES, _HANDLE_TYPE, generation, inode)

    def forget(self, inode: int) -> None:
        if inode // _BLOCK in self._blocks:
            self._set(inode, _NONE)

    def _set(self, inode: int, generation: int) -> None:
        number, place = divmod(inode, _BLOCK)
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = array("I", bytes(4 * _BLOCK))
            self._in_use[number] = 0
        self._in_use[number] += (generation != _NONE) - (block[place] != _NONE)
        block[place] = generation
        if not self._in_use[number]:
            del self._blocks[number], self._in_use[number]
