"""Files handed over by the operator: another tenant owns their pages from then on, or nobody does.

Only pages that are resident are handed over; what is allocated later is its allocator's. A page that the kernel charges
to its owner's own cgroup (foreign, I2) stays the owner's.

Each file is one change of the books. A daemon that is killed in between has handed over some of the files, and to ask
for it once more hands over the rest.
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from sharedfs.accounting.books import Books
from sharedfs.api.types import HandedOver
from sharedfs.common.errors import CallerMistake
from sharedfs.daemon.named_files import find_named
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")


class NoSuchName(CallerMistake):
    """There is no such file in the pool, or no such cgroup on the host."""


class Ownership:
    """For one pool. From any thread."""

    def __init__(self, store: Store, books: Books) -> None:
        self._store = store
        self._books = books

    def hand_over(self, path: str, cgroup: str | None, *, recursive: bool, escaped: bool = False) -> HandedOver:
        """Give the file at `path`, relative to the pool's root, to the tenant with this cgroup; None: to nobody.

        `path` is as `find_named` takes it. `recursive`: of a directory, all files below it. Symlinks are not followed.
        Raises CallerMistake. O(pages).
        """
        with self._store.lock:
            try:
                node = find_named(self._store, path, escaped=escaped)
            except OSError:
                raise NoSuchName("there is no such file") from None
            mode = self._store.stat(node).st_mode
        is_directory = stat.S_ISDIR(mode)
        if not is_directory and not stat.S_ISREG(mode):
            raise CallerMistake("it is no regular file and has no pages: name the file itself")
        if is_directory and not recursive:
            raise CallerMistake("it is a directory: add --recursive to hand over the files in it")
        tenant, owner = (NOBODY, None) if cgroup is None else self._tenant(cgroup)
        files = handed_bytes = foreign_bytes = 0
        for inode in self._below(node) if is_directory else [node.inode]:
            handed, foreign = self._books.pages.hand_over(inode, tenant)
            files += handed + foreign > 0
            handed_bytes += handed
            foreign_bytes += foreign
        log.info("handed %d files (%d bytes) in /%s over to %s", files, handed_bytes, path, owner or "nobody")
        return HandedOver(tenant=owner, files=files, handed_bytes=handed_bytes, foreign_bytes=foreign_bytes)

    def _tenant(self, cgroup: str) -> tuple[TenantId, str]:
        """The tenant that a process in `cgroup` would be, and its path."""
        if not cgroup.strip("/"):
            raise CallerMistake("the root cgroup has no budget and never exits: name a tenant, or nobody")
        tenant = self._books.tenants.tenant_at(cgroup)
        found = self._books.tenants.cgroup_of(tenant)
        if found is None:
            raise NoSuchName(f"{cgroup} is no memory cgroup")
        return tenant, found.path

    def _below(self, top: Node) -> Iterator[int]:
        """The inodes below a directory that are no directories. What moves meanwhile may be left out."""
        pending, seen = [top.inode], {top.inode}
        while pending:
            inode = pending.pop()
            with suppress(OSError):  # it is gone, or a file now
                with self._store.lock:
                    node = self._store.find(inode)
                with self._store.opened(node, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
                    for entry in entries:
                        found = entry.inode()
                        if not entry.is_dir(follow_symlinks=False):
                            yield found
                        elif found not in seen:
                            seen.add(found)
                            pending.append(found)
