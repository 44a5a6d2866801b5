"""`--unclaimed yield`: before a request fails for want of space (ENOSPC), unclaimed files go, the oldest first.

Called by the thread that answers the request, the request pump for one, with the request half done or not begun. So
nothing here waits for the kernel: it may hold the lock of a directory for a request that waits for the pump. A file
leaves the tree; as many pieces of it are freed at once as the request needs, and the reaper frees the rest. A thread
of its own tells the kernel that the name is gone.

Oldest is what has been unclaimed for longest. Until the kernel knows that a name is gone, a tenant may still open the
file by it. The file carries a mark, so that this open is refused with ESTALE, and the kernel looks the name up anew.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from sharedfs.accounting.books import Books
from sharedfs.fuse import messages
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import BODY, Opcode
from sharedfs.maintenance.gone_names import TakenOut
from sharedfs.maintenance.unclaimed import UnclaimedFiles
from sharedfs.ops.content import GIVEN_WAY_MARK, Content
from sharedfs.pages.reaper import Reaper
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_LOOK_SHARE = 0.05  # of the time may go into looking for files that have become unclaimed just now
_NO_BYTES = 0
# A rename that makes a whiteout is not among them: it could lose the file that it is about.
_MAKERS = frozenset(
    (Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE, Opcode.SETXATTR)
)

Need = tuple[int, int]
"""So many bytes, and the inode that the request is about, which is spared."""


def need_of(request: memoryview) -> Need | None:
    """What a request needs space for; None for one that needs none."""
    _, opcode, _, node, _, _, _, _, _ = wire.IN_HEADER.unpack_from(request)
    if opcode == Opcode.WRITE:
        return wire.WRITE_IN.unpack_from(request, BODY)[2], node
    if opcode == Opcode.FALLOCATE:
        return wire.FALLOCATE_IN.unpack_from(request, BODY)[2], node
    if opcode in wire.COPIES:
        return _NO_BYTES, wire.COPY_FILE_RANGE_IN.unpack_from(request, BODY)[2]  # it is made in small parts
    if opcode == Opcode.LINK:
        return _NO_BYTES, messages.LINK_IN.unpack_from(request, BODY)[0]
    return (_NO_BYTES, node) if opcode in _MAKERS else None


class GivingWay:
    """For one pool. `is_wanted` says whether the rule is in force; the others are as for `UnclaimedFiles`."""

    def __init__(
        self,
        store: Store,
        books: Books,
        content: Content,
        unclaimed: UnclaimedFiles,
        is_wanted: Callable[[], bool],
        tell: Callable[[TakenOut], None],
        reaper: Reaper,
    ) -> None:
        self._store = store
        self._books = books
        self._content = content
        self._unclaimed = unclaimed
        self._is_wanted = is_wanted
        self._tell = tell
        self._reaper = reaper
        self._lock = threading.Lock()
        self._candidates: deque[tuple[int, int]] = deque()
        self._candidate_bytes = 0
        self._looked_at = -1  # the ledger's sequence then
        self._look_again_at = 0.0

    def resume(self) -> None:
        """Free the pages of files that a daemon before us had taken out of the tree, and no more."""
        for inode, name in list(self._store.removed.items()):
            with suppress(OSError), self._store.lock:
                if self._content.has_given_way(self._store.find(inode)):
                    self._reaper.empty(inode, name)

    def for_request(self, request: memoryview) -> bool:
        """Whether files went, so that the request is to be tried again."""
        if not self._is_wanted():
            return False
        need = need_of(request)
        return need is not None and self.for_bytes(*need)

    def for_bytes(self, needed_bytes: int, spared: int) -> bool:
        """Make room for so many bytes; False when no file went: none is left, or all would not be enough."""
        if not self._is_wanted():
            return False
        with self._lock:
            gave_way = self._reaper.free_some()  # or in part, for a request before this one
            while not gave_way or self._store.tmpfs.free_bytes() < needed_bytes:
                if not self._candidates or self._store.tmpfs.free_bytes() + self._candidate_bytes < needed_bytes:
                    self._look()
                    if not self._candidates or self._store.tmpfs.free_bytes() + self._candidate_bytes < needed_bytes:
                        break
                inode, held_bytes = self._candidates.popleft()
                self._candidate_bytes -= held_bytes
                if inode != spared and self._give(inode):
                    gave_way = True
                    self._reaper.free_some()  # a name needs no bytes, and space
                while self._store.tmpfs.free_bytes() < needed_bytes and self._reaper.free_some():
                    pass  # what is gone already is freed before another file goes
            return gave_way

    def available_bytes(self) -> int:
        """The unclaimed bytes, of files that can go or not. From any thread. O(classes)."""
        return self._books.questions.bytes_where(lambda held: held.is_unclaimed) if self._is_wanted() else 0

    def _look(self) -> None:
        """Which files are unclaimed, where the books have changed since the last look. O(files), now and then."""
        started, sequence = time.monotonic(), self._books.questions.sequence
        if sequence == self._looked_at or started < self._look_again_at:
            return
        self._candidates = deque(self._unclaimed.oldest_first())
        self._candidate_bytes = sum(held_bytes for _, held_bytes in self._candidates)
        self._looked_at = sequence
        now = time.monotonic()
        self._look_again_at = now + (now - started) / _LOOK_SHARE

    def _give(self, inode: int) -> bool:
        try:
            taken = self._unclaimed.take_out(inode, mark=GIVEN_WAY_MARK)
            if taken is None:
                return False
            self._tell(taken)
            with self._store.lock:
                if inode in self._store.removed:
                    self._reaper.empty(inode, self._store.removed[inode])
        except OSError as error:  # chattr's +i or +a, or no descriptor left
            log.debug("inode %d does not give way: %s", inode, error)
            return False
        return True
