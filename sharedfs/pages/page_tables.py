"""What page tables show of a process's mappings of the mount, and whose the process is: looked at in a child process.

`look` is what the child of a `Looker` does, and may wait for a process for ever. Reads /proc only.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sharedfs.common.units import PAGE_BYTES
from sharedfs.ledger.page_ranges import Runs, as_runs
from sharedfs.linux import procfs
from sharedfs.linux.pagemap import PagemapReader

_TRIES = 5  # to look at a process whose threads end

Device = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mapped:
    """Asks what a process maps of the files on `device`, and with `pages` what its page tables show of it."""

    device: Device
    pages: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """Asks for the page faults of processes so far, and for what their page tables show of these parts of mappings."""

    by_process: Mapping[int, tuple[str, tuple[procfs.Mapping, ...]]]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a process: `cgroup` is the text of the task that stands for it, `present` has pages by inode."""

    process: procfs.Process
    cgroup: bytes | None
    task: str
    mappings: tuple[procfs.Mapping, ...]
    present: Mapping[int, Runs]


@dataclass(frozen=True, slots=True)
class PartsSight:
    process: procfs.Process
    faults: int
    present: Mapping[int, Runs]


_reader = PagemapReader()


def look(process_id: int, question: Mapped | Parts) -> Sight | PartsSight | None:
    """None of a process that maps nothing of the mount, or that is gone."""
    if isinstance(question, Parts):
        return _parts(process_id, *question.by_process[process_id])
    for _ in range(_TRIES):
        task, mappings = procfs.mappings_of_device(process_id, question.device)
        process = procfs.process_with(process_id)
        if not mappings or process is None:
            return None
        try:
            present = present_pages(_reader, task, mappings) if question.pages else {}
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread that it is looked through ended meanwhile, so that another one has to be found
        sight = Sight(process, procfs.cgroup_of(task), task, tuple(mappings), present)
        if procfs.process_with(process_id) == process:
            return sight
        # else the id became another process's: what was read is a mixture of two
    return None


def _parts(process_id: int, task: str, parts: tuple[procfs.Mapping, ...]) -> PartsSight | None:
    found = procfs.process_faults(process_id)  # before page tables are read: what is faulted in meanwhile is counted
    if found is None:
        return None
    try:
        return PartsSight(*found, present_pages(_reader, task, parts) if parts else {})
    except (FileNotFoundError, ProcessLookupError):
        return None


def present_pages(reader: PagemapReader, task: str, mappings: Iterable[procfs.Mapping]) -> dict[int, Runs]:
    """The pages that page tables show in these mappings of a process, by inode; of a mapping without any, too.

    Raises FileNotFoundError, ProcessLookupError when the task is gone.
    """
    found: defaultdict[int, list[Runs]] = defaultdict(list)
    fd = os.open(f"{task}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for mapping in mappings:
            addresses = reader.present(fd, mapping.start, mapping.end, shared=mapping.shared)
            found[mapping.inode].append((addresses - (mapping.start - mapping.offset)) // PAGE_BYTES - (0, 1))
    finally:
        os.close(fd)
    return {inode: as_runs(np.concatenate(pages)) for inode, pages in found.items()}
