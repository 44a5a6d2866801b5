"""What the books are kept in, as the books see it: memory that keeps its place, and a log of small records.

Both may outlive the process that writes them (see `sharedfs.accounting.persistence`), so both are written for one that
may be killed between any two stores: cells and entries are whole words, a record is there or is not, `rewriting`
switches from the old log to the new one at once. What fails to be kept raises HostFault: the books are then not to be
used further.

Here are those that live as long as the object: the books without a keeper, and most tests.
"""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Record = Sequence[Any]
"""A tag and its operands, as JSON has them: strings, integers, lists of these."""

REGION_BYTES = 1 << 36
"""Address space for one region, not memory. Enough cells for 64 TiB of pages."""
_PASSING_BYTES = 1 << 32
"""Of one that lives in this process only: User-Mode Linux has addresses for eight of those above."""

_MAP_NORESERVE = 0x4000  # not in Python's mmap before 3.13


class Region(Protocol):
    """Memory at one place. Only the first `backed_bytes` of `view` may be used."""

    view: memoryview
    backed_bytes: int

    def back(self, size_bytes: int) -> None:
        """Make at least the first `size_bytes` usable; new bytes are zero."""


class Log(Protocol):
    """Records in the order they were appended."""

    overgrown: bool
    """Whether a `rewriting` is worth its cost: most of the log is history."""

    def records(self) -> list[Record]:
        """What was there when the log was opened."""

    def append(self, record: Record) -> None:
        """Kept when this returns; when we are killed within, kept or not."""

    def rewriting(self, records: Iterable[Record]) -> Iterator[None]:
        """Put `records` in place of all that were there at the first step, one at each step, and at once at the end.

        What is appended between two steps is kept. An earlier one that has not ended comes to nothing.
        """


class MemoryRegion:
    """Lives and dies with this object."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _PASSING_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE))
        self.backed_bytes = 0

    def back(self, size_bytes: int) -> None:
        self.backed_bytes = max(self.backed_bytes, size_bytes)


class MemoryLog:
    """Keeps nothing: who would read it dies with it."""

    overgrown = False

    def records(self) -> list[Record]:
        return []

    def append(self, record: Record) -> None:
        pass

    def rewriting(self, records: Iterable[Record]) -> Iterator[None]:
        del records
        return iter(())


def rewrite(log: Log, records: Iterable[Record]) -> None:
    """As `Log.rewriting`, in one piece."""
    for _ in log.rewriting(records):
        pass


@dataclass
class LedgerStorage:
    """Where a ledger lives: `entries` tell the chunks of all files, `short` and `long` hold their cells."""

    entries: Region = field(default_factory=MemoryRegion)
    short: Region = field(default_factory=MemoryRegion)
    long: Region = field(default_factory=MemoryRegion)
    log: Log = field(default_factory=MemoryLog)
