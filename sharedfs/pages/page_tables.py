"""What page tables show of a process's mappings of the mount, and whose the process is.

`see` and `see_parts` may wait for a process for ever, so a child process calls them (`pages/look_messages.py`). They
read /proc only.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import NO_RUNS, Runs, as_runs
from sharedfs.linux import procfs
from sharedfs.linux.file_device import opened_for_reading
from sharedfs.linux.mapping_table import MappingTable, Numbers, mappings_of_device
from sharedfs.linux.pagemap import PagemapReader

_TRIES = 5  # to look at a process whose threads end
# The kernel is asked once for mappings that are smaller than this and no further apart. What else is mapped in between
# costs no more than to ask twice: there are 512 entries of a page table.
_ASKED_TOGETHER_BYTES = 2 << 20

Device = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parts:
    """Asks for the page faults of processes so far, and for what their page tables show of these parts of mappings."""

    by_process: Mapping[int, tuple[str, tuple[procfs.Mapping, ...]]]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a process: `cgroup` is the text of the task that stands for it, `present` has pages by inode.

    `opened` are inodes, where that was asked.
    """

    process: procfs.Process
    cgroup: bytes | None
    task: str
    mappings: MappingTable
    present: Mapping[int, Runs]
    opened: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PartsSight:
    process: procfs.Process
    faults: int
    present: Mapping[int, Runs]


_reader = PagemapReader()


def see(process_id: int, device: Device, *, pages: bool, opened: bool) -> Sight | None:
    """What a process maps of the files on `device`; with `pages` what its page tables show of it.

    With `opened` also which files it has open for reading only: with `--reads fast` it may read all of these unseen.
    None of a process that has nothing of the mount, or that is gone.
    """
    for _ in range(_TRIES):
        task, mappings = mappings_of_device(process_id, device)
        process = procfs.process_with(process_id)
        inodes = opened_for_reading(process_id, device) if opened else frozenset[int]()
        if not (len(mappings) or inodes) or process is None:
            return None
        try:
            present = present_pages(_reader, task, mappings) if pages and len(mappings) else {}
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread that it is looked through ended meanwhile, so that another one has to be found
        sight = Sight(process, procfs.cgroup_of(task), task, mappings, present, inodes)
        if procfs.process_with(process_id) == process:
            return sight
        # else the id became another process's: what was read is a mixture of two
    return None


def see_parts(process_id: int, task: str, parts: MappingTable) -> PartsSight | None:
    """The page faults of a process so far, and what its page tables show of parts of its mappings."""
    found = procfs.process_faults(process_id)  # before page tables are read: what is faulted in meanwhile is counted
    if found is None:
        return None
    try:
        return PartsSight(*found, present_pages(_reader, task, parts) if len(parts) else {})
    except (FileNotFoundError, ProcessLookupError):
        return None


def present_pages(reader: PagemapReader, task: str, mappings: MappingTable) -> dict[int, Runs]:
    """The pages that page tables show in these mappings of a process, by inode; of a mapping without any, too.

    Raises FileNotFoundError, ProcessLookupError when the task is gone.
    """
    found = dict.fromkeys(mappings.inodes(), NO_RUNS)
    fd = os.open(f"{task}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        addresses = np.concatenate(
            [reader.present(fd, start, end, shared=shared) for start, end, shared in spans(mappings)]
        )
    finally:
        os.close(fd)
    rows, first, behind = _in_mappings(addresses, mappings)
    shift = rows["offset"] - rows["start"]
    pages = np.stack(((first + shift) // PAGE_BYTES, (behind + shift) // PAGE_BYTES - 1), axis=1)
    order = np.argsort(rows["inode"], kind="stable")
    inodes, begins = np.unique(rows["inode"][order], return_index=True)
    for inode, its in zip(inodes.tolist(), np.split(pages[order], begins[1:]), strict=False):
        found[inode] = its if len(its) == 1 else as_runs(its)
    return found


def spans(mappings: MappingTable) -> Iterator[tuple[int, int, bool]]:
    """What to ask the kernel for: start, end, and whether all mappings there are shared. Small neighbours are one."""
    starts, ends, shared = (mappings.rows[name] for name in ("start", "end", "shared"))
    is_small = ends - starts < _ASKED_TOGETHER_BYTES
    is_near = starts[1:] - ends[:-1] < _ASKED_TOGETHER_BYTES
    begins = np.flatnonzero(np.concatenate(([True], ~(is_small[1:] & is_small[:-1] & is_near))))
    lasts = np.concatenate((begins[1:], [len(starts)])) - 1
    all_shared = np.logical_and.reduceat(shared, begins)
    return zip(starts[begins].tolist(), ends[lasts].tolist(), all_shared.tolist(), strict=True)


def _in_mappings(addresses: Numbers, mappings: MappingTable) -> tuple[np.ndarray[Any, Any], Numbers, Numbers]:
    """The parts of `addresses` that are in mappings: the row of each part's mapping, its start and its end."""
    starts, ends = mappings.rows["start"], mappings.rows["end"]
    begins = np.searchsorted(addresses[:, 1], starts, side="right")
    counts = np.maximum(np.searchsorted(addresses[:, 0], ends, side="left") - begins, 0)
    mapping = np.repeat(np.arange(len(starts)), counts)
    part = np.arange(len(mapping)) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
    return (
        mappings.rows[mapping],
        np.maximum(addresses[part, 0], starts[mapping]),
        np.minimum(addresses[part, 1], ends[mapping]),
    )


# -- For daemons that were started by an earlier version ---------------------------------------------------------------
#
# Theirs are children of this version once the package is replaced. They find these names here, by `pickle`, and read
# what is above. To be removed with the first release after 0.1. Since then it is `pages/look_messages.py`.


@dataclass(frozen=True, slots=True)
class Mapped:
    """As a version asks that reads a `Sight` with a tuple of mappings."""

    device: Device
    pages: bool


@dataclass(frozen=True, slots=True)
class MappedTable(Mapped):
    """As a version asks that reads a `Sight` with a table."""


@dataclass(frozen=True, slots=True)
class MappedAndOpened(MappedTable):
    """And the files that are open for reading."""


def look(process_id: int, question: Mapped | Parts) -> Sight | PartsSight | None:
    if isinstance(question, Parts):
        task, parts = question.by_process[process_id]
        return see_parts(process_id, task, MappingTable.of(parts))
    opened = isinstance(question, MappedAndOpened)
    sight = see(process_id, question.device, pages=question.pages, opened=opened)
    if sight is None or isinstance(question, MappedTable):
        return sight
    mappings: Any = tuple(sight.mappings.mappings())
    return replace(sight, mappings=mappings)
