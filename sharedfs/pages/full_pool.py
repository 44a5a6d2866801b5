"""What fills a pool whose tenants find no space: said in the log, now and then.

Files that are deleted count until nobody uses them and the kernel has forgotten them, so `df` shows more than `du`.
"""

import logging
import time
from collections.abc import Callable
from itertools import islice

from sharedfs.accounting.books import Books
from sharedfs.common.units import format_size
from sharedfs.pages.reaper import Reaper
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

PAUSE_SECONDS = 60.0
"""Between two lines."""
_FILES_LOOKED_AT = 1000  # a millisecond


class FullPool:
    """For one pool. `tell` from any thread."""

    def __init__(
        self, store: Store, books: Books, reaper: Reaper, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._books = books
        self._reaper = reaper
        self._monotonic = monotonic
        self._again_at = 0.0

    def tell(self) -> None:
        """A request has failed for want of space."""
        now = self._monotonic()
        if now < self._again_at:
            return
        self._again_at = now + PAUSE_SECONDS
        tmpfs = self._store.tmpfs
        deleted = list(self._store.removed)
        held_bytes = sum(map(self._books.questions.resident_bytes_of, islice(deleted, _FILES_LOOKED_AT)))
        log.warning(
            "a request found no space: %s of %s are in use; deleted files that are still used: %d, with %s%s; "
            "about to be freed: %s",
            format_size(tmpfs.used_bytes()),
            format_size(tmpfs.room.bound.bytes),
            len(deleted),
            "" if len(deleted) <= _FILES_LOOKED_AT else "at least ",
            format_size(held_bytes),
            format_size(self._reaper.waiting_bytes),
        )
