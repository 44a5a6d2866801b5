import mmap
from typing import Any

class FastPath:
    """Answers READ, WRITE, GETATTR and LOOKUP, as far as it can, on the wire. For one thread. See fastpath.c."""

    enabled: int
    busy: int
    reads: int
    writes: int
    attributes: int
    absent: int
    def __init__(
        self,
        *,
        device_fd: int,
        max_read: int,
        entry_seconds: int,
        nodes: dict[int, Any],
        paths: dict[int, int],
        removed: dict[int, bytes],
        files: dict[int, int],
        callers: object,
        verified: dict[Any, Any],
        heads: tuple[memoryview, ...],
        books: object,
        credit: memoryview,
    ) -> None: ...
    def next(self, request: bytearray | mmap.mmap, /) -> int:
        """Answer requests until one wants Python, or many wait; it is in `request`. Its length. Raises OSError."""
    def serve(self, request: bytes | bytearray | memoryview, /) -> bool:
        """Answer this request, or leave it for Python, untouched."""
