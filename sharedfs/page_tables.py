"""What page tables show of a process's mappings of the mount, and whose the process is. Reads /proc only."""

import os
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from sharedfs.books import Books
from sharedfs.kernel import proc
from sharedfs.kernel.pagemap import PagemapReader
from sharedfs.model.ranges import Runs
from sharedfs.model.tenant import NOBODY, TenantId


def tenant_of(books: Books, task: str) -> TenantId:
    """Whose a task is, as its directory in /proc says."""
    text = proc.cgroup_of(task)
    return NOBODY if text is None else books.tenant_in(text)


def present_pages(reader: PagemapReader, task: str, mappings: Iterable[proc.Mapping]) -> dict[int, Runs]:
    """The pages that page tables show in these mappings of a process, by inode; of a mapping without any, too.

    In the order of the mappings: see `as_runs`. Raises FileNotFoundError, ProcessLookupError when the task is gone.
    """
    found: defaultdict[int, list[Runs]] = defaultdict(list)
    fd = os.open(f"{task}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for mapping in mappings:
            addresses = reader.present(fd, mapping.start, mapping.end, shared=mapping.shared)
            pages = (addresses - mapping.start) // proc.PAGE_BYTES + mapping.page_at(mapping.start)
            found[mapping.inode].append(pages - (0, 1))
    finally:
        os.close(fd)
    return {inode: np.concatenate(pages) for inode, pages in found.items()}
