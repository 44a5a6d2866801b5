"""What page tables show of a process's mappings of the mount, and whose the process is. Reads /proc only."""

import os
from collections import defaultdict
from collections.abc import Iterable

from sharedfs.books import Books
from sharedfs.kernel import proc
from sharedfs.kernel.pagemap import PagemapReader
from sharedfs.model.ranges import PageRange
from sharedfs.model.tenant import NOBODY, TenantId


def tenant_of(books: Books, task: str) -> TenantId:
    """Whose a task is, as its directory in /proc says."""
    text = proc.cgroup_of(task)
    return NOBODY if text is None else books.tenant_in(text)


def present_pages(reader: PagemapReader, task: str, mappings: Iterable[proc.Mapping]) -> dict[int, list[PageRange]]:
    """The pages that page tables show in these mappings of a process, by inode; of a mapping without any, too.

    Raises FileNotFoundError, ProcessLookupError when the task is gone.
    """
    found: defaultdict[int, list[PageRange]] = defaultdict(list)
    fd = os.open(f"{task}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for mapping in mappings:
            found[mapping.inode] += [
                (mapping.page_at(start), mapping.page_at(end) - 1)
                for start, end in reader.present(fd, mapping.start, mapping.end, shared=mapping.shared)
            ]
    finally:
        os.close(fd)
    return found
