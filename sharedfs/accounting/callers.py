"""Callers: which tenant a thread belongs to at this moment (I9).

FUSE tells the calling thread's id. For each thread seen lately a descriptor of its /proc/TID/cgroup is kept: it cannot
be fooled by a reused id (the descriptor belongs to the thread, not to the number) and says at each reading where the
thread is then. Reading costs 4 us, so it is read again only when some thread of the host has moved or ended since
(`TaskEvents`), or at every call where the kernel does not tell. The text is looked up in a dict,
and the cgroup's inode number compared: a path may come back as another cgroup sooner than its exit is noticed.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field

from sharedfs.accounting.books import Books
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.linux.procfs import open_thread_cgroup, read_thread_cgroup

_KEPT_THREADS = 1024
# When so many are kept, and again when they have doubled, those of dead threads are closed.
_SWEPT_THREADS = 64
_KEPT_TEXTS = 4096
_REMEMBERED_THREADS = 4096


@dataclass(slots=True)
class Remembered:
    """What is known of threads that may have ended when their requests come: AIO does not wait for the answer."""

    last: dict[int, TenantId] = field(default_factory=dict)
    """Thread id -> the tenant that it had when it was last looked up; some thousands at most."""
    openers: dict[int, TenantId] = field(default_factory=dict)
    """Inode -> who opened it last for direct I/O, as long as somebody has it open."""

    def last_of(self, thread_id: int) -> TenantId:
        """Whose a thread was when it was last looked up, which may be gone; NOBODY where it never was."""
        return self.last.get(thread_id, NOBODY)


class Callers:
    """For one thread of ours: have one for each."""

    def __init__(self, books: Books, events: TaskEvents | None, known: Remembered | None = None) -> None:
        """`known` is shared with the callers of our other threads."""
        self._tenants = books.tenants
        self._events = events
        self.verified: dict[int, TenantId] = {}
        """Thread id -> tenant, as read since the events' count was `verified_at`. Also for sharedfs/ops/fastpath.c."""
        self.verified_at = 0
        self._threads: dict[int, int] = {}  # thread id -> descriptor, oldest first
        self._sweep_at = _SWEPT_THREADS
        # Text of /proc/TID/cgroup -> tenant, and the directory and inode number of its cgroup.
        self._texts: dict[bytes, tuple[TenantId, str, int]] = {}
        self._exits = books.tenants.exits
        self._known = Remembered() if known is None else known

    def tenant_of(self, thread_id: int) -> TenantId:
        """The tenant of a live thread. NOBODY for the kernel (0).

        A thread that is gone (its AIO request came later) has the tenant that it had when it was last looked up here,
        by whichever of our threads; NOBODY when it never was, or that tenant is gone.
        Raises OSError when no descriptor is left to look with: ask before anything is done on the thread's account.
        """
        if thread_id == 0:
            return NOBODY
        if self._events is None:
            return self._read(thread_id)
        count = self._events.count()  # before the cgroup is read: what happens meanwhile makes us read it again
        if count != self.verified_at:
            self.verified.clear()
            self.verified_at = count
        tenant = self.verified.get(thread_id)
        if tenant is None:
            tenant = self._read(thread_id)
            if tenant != NOBODY:
                self.verified[thread_id] = tenant
        return tenant

    def remember(self, thread_id: int) -> None:
        """Look a thread up that may have ended when it is asked for (`Remembered.last_of`), unless it was lately.

        Where the kernel tells nothing of threads it tells nothing of mappings either: nobody will ask.
        """
        if self._events is not None and thread_id not in self.verified:
            with suppress(OSError):  # no descriptor is left to look with
                self.tenant_of(thread_id)

    def distrust_events(self) -> None:
        """Read at every call from here on. From any thread."""
        self._events = None

    def _read(self, thread_id: int) -> TenantId:
        text = self._cgroup_text(thread_id)
        if text is None:
            return self._of_the_dead(thread_id)
        tenant = self._tenant_in(text)
        if tenant != NOBODY:
            if len(self._known.last) >= _REMEMBERED_THREADS:
                self._known.last.clear()  # not one by one, for another of our threads may add one meanwhile
            self._known.last[thread_id] = tenant
        return tenant

    def opens_directly(self, inode: int, thread_id: int) -> None:
        """A thread opens a file for direct I/O: it may have ended when its requests come, or others that it made."""
        self._known.openers[inode] = self.tenant_of(thread_id)

    def closed(self, inode: int) -> None:
        """Nobody has the file open any more."""
        self._known.openers.pop(inode, None)

    def opener_of(self, inode: int) -> TenantId:
        """Whose a request is that a thread made which is gone and was never looked up; NOBODY as a rule."""
        return self._if_live(self._known.openers.get(inode, NOBODY))

    def _of_the_dead(self, thread_id: int) -> TenantId:
        return self._if_live(self._known.last.get(thread_id, NOBODY))

    def _if_live(self, tenant: TenantId) -> TenantId:
        return tenant if tenant != NOBODY and self._tenants.cgroup_of(tenant) is not None else NOBODY

    def _tenant_in(self, text: bytes) -> TenantId:
        if self._exits != self._tenants.exits:
            self._exits = self._tenants.exits
            self._texts.clear()
        known = self._texts.get(text)
        if known is not None and _inode_at(known[1]) in (known[2], None):  # else the path is another cgroup's by now
            return known[0]  # None: it is only hidden, for the thread is in it
        tenant = self._tenants.tenant_in(text)
        cgroup = self._tenants.cgroup_of(tenant)
        if cgroup is not None:
            if len(self._texts) >= _KEPT_TEXTS:
                self._texts.clear()
            self._texts[text] = tenant, str(self._tenants.hierarchy.directory(cgroup.path)), cgroup.inode
        return tenant

    def make_room(self) -> None:
        """Close all descriptors, for a process that has none left."""
        while self._threads:
            os.close(self._threads.popitem()[1])

    def _cgroup_text(self, thread_id: int) -> bytes | None:
        fd = self._threads.get(thread_id)
        if fd is not None:
            text = read_thread_cgroup(fd)
            if text is not None:
                return text
            os.close(self._threads.pop(thread_id))  # that thread is dead; the number may be a new thread's
        fd = open_thread_cgroup(thread_id)
        if fd is None:
            return None
        while len(self._threads) >= _KEPT_THREADS:
            os.close(self._threads.pop(next(iter(self._threads))))
        self._threads[thread_id] = fd
        if len(self._threads) >= self._sweep_at:
            self._sweep()
        return read_thread_cgroup(fd)

    def _sweep(self) -> None:
        """Close the descriptors of threads that are dead. O(threads), 4 us each; rarely."""
        for thread_id, fd in list(self._threads.items()):
            if read_thread_cgroup(fd) is None:
                os.close(self._threads.pop(thread_id))
        self._sweep_at = max(_SWEPT_THREADS, 2 * len(self._threads))


def _inode_at(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
