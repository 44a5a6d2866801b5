import mmap

from sharedfs.ops.shortcut import Given

class FastPath:
    """Answers READ, WRITE, GETATTR and LOOKUP, as far as it can, on the wire. For one thread. See fastpath.c."""

    enabled: int
    busy: int
    leaves: int
    rests: int
    reads: int
    writes: int
    attributes: int
    absent: int
    def __init__(self, given: Given, /) -> None: ...
    def next(self, request: bytearray | mmap.mmap, /) -> int:
        """Answer requests until one wants Python, or many wait; it is in `request`. Its length. Raises OSError."""
    def serve(self, request: bytes | bytearray | memoryview, /) -> bool:
        """Answer this request, or leave it for Python, untouched."""
