import mmap
from typing import Any

class FastPath:
    """Answers READ and WRITE of what is known, on the wire. For one thread. See fastpath.c."""

    enabled: int
    busy: int
    reads: int
    writes: int
    def __init__(
        self,
        *,
        device_fd: int,
        max_read: int,
        nodes: dict[int, Any],
        files: dict[int, int],
        callers: object,
        verified: dict[Any, Any],
        heads: tuple[memoryview, ...],
        books: object,
    ) -> None: ...
    def next(self, request: bytearray | mmap.mmap, /) -> int:
        """Answer requests until one wants Python, or many wait; it is in `request`. Its length. Raises OSError."""
    def serve(self, request: bytes | bytearray | memoryview, /) -> bool:
        """Answer this request, or leave it for Python, untouched."""
