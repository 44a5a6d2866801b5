"""The mappings of a process as a table: there may be 65,530 of them, and objects for all would take a second."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux.procfs import Mapping, task_maps

_ROW = np.dtype([("start", "i8"), ("end", "i8"), ("shared", "?"), ("offset", "i8"), ("inode", "u8")])

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MappingTable:
    """Mappings of a process in the order of their addresses; `rows` has the fields of `Mapping`."""

    rows: NDArray[np.void]

    @classmethod
    def parse(cls, text: bytes, device: tuple[int, int]) -> Self:
        """The lines of a /proc/PID/maps that name `device` (major, minor).

        A line is `start-end perms offset major:minor inode path`.
        """
        name = b"%02x:%02x" % device
        if name not in text:
            return cls(np.empty(0, _ROW))
        pattern = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...(.) ([0-9a-f]+) " + name + rb" (\d+)", re.MULTILINE)
        found = pattern.findall(text)
        rows = np.empty(len(found), _ROW)
        rows["start"] = [int(line[0], 16) for line in found]
        rows["end"] = [int(line[1], 16) for line in found]
        rows["shared"] = [line[2] == b"s" for line in found]
        rows["offset"] = [int(line[3], 16) for line in found]
        rows["inode"] = [int(line[4]) for line in found]
        return cls(rows)

    @classmethod
    def of(cls, mappings: Iterable[Mapping]) -> Self:
        listed = [(one.start, one.end, one.shared, one.offset, one.inode) for one in mappings]
        rows = np.array(listed, _ROW)
        return cls(rows[np.argsort(rows["start"], kind="stable")])

    @classmethod
    def unpacked(cls, rows: bytes) -> Self:
        return cls(np.frombuffer(rows, _ROW))

    def packed(self) -> bytes:
        """33 bytes for each mapping, in the order of `Mapping`'s fields."""
        return self.rows.tobytes()

    def __len__(self) -> int:
        return len(self.rows)

    def inodes(self) -> frozenset[int]:
        return frozenset(np.unique(self.rows["inode"]).tolist())

    def pages_of(self, inode: int) -> Numbers:
        """The first and the last page of the file in each of its mappings."""
        rows = self.rows[self.rows["inode"] == inode]
        first = rows["offset"] // PAGE_BYTES
        return np.stack((first, first + (rows["end"] - rows["start"]) // PAGE_BYTES - 1), axis=1)

    def within(self, inode: int, first_page: int, last_page: int) -> "MappingTable":
        """The mappings that have any of these pages of a file."""
        rows = self.rows[self.rows["inode"] == inode]
        first = rows["offset"] // PAGE_BYTES
        behind = first + (rows["end"] - rows["start"]) // PAGE_BYTES
        return MappingTable(rows[(first <= last_page) & (behind > first_page)])

    def mappings(self) -> list[Mapping]:
        """All of them as objects. O(mappings), with Python's lock held."""
        return [Mapping(*row) for row in self.rows.tolist()]


def mappings_of_device(process_id: int, device: tuple[int, int]) -> tuple[str, MappingTable]:
    """The mappings that a process has of files on `device` (major, minor), and the task that shows them.

    None of a process that is gone, or of a kernel thread.
    """
    task, text = task_maps(process_id)
    return task, MappingTable.parse(text, device)
