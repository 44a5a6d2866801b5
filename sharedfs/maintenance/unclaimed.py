"""Unclaimed files: files with pages that no live tenant pays for, and what the operator's rule does about them.

    keep     they stay until somebody removes them (the default: nothing is lost that somebody may come back for)
    delete   after a grace the file is removed
    spill    after a grace its content goes to disk, and comes back when it is opened (`pages/spill.py`)
    yield    it stays until a request would fail for want of space (`maintenance/giving_way.py`)

A rule acts on regular files only of which no page has a payer, and which nobody has open or mapped. A file with several
names is not deleted: removing one of them would free nothing. Directories stay. A file is not spilled while a process
or a device holds pages of it otherwise (`maintenance/pins.py`).

The grace begins when we first find a file unclaimed, and anew with each opening: an opening is a use.
"""

import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC, EPERM, EROFS

from sharedfs.accounting.books import Books
from sharedfs.api.paged_lists import PagedLists
from sharedfs.api.types import FILES_OF_A_PAGE, UnclaimedFile, UnclaimedPage
from sharedfs.fuse.device import Device
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.maintenance.gone_names import TakenOut
from sharedfs.maintenance.pins import Pins
from sharedfs.ops.names import Names
from sharedfs.ops.recent_uses import RecentUses
from sharedfs.pages.spill import Spill
from sharedfs.pages.unused_windows import CannotMove
from sharedfs.pool.options import UnclaimedRule
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

log = logging.getLogger("sharedfs")

_PAUSE_AFTER_FAILURE_SECONDS = 60.0
_OF_THE_DISK = (ENOSPC, EDQUOT, EROFS)


@dataclass(frozen=True, slots=True)
class Rule:
    name: UnclaimedRule
    grace_seconds: float


class UnclaimedFiles:
    """For one pool; `sweep` is for one thread, which is not the request pump."""

    def __init__(
        self,
        store: Store,
        books: Books,
        names: Names,
        uses: RecentUses,
        spill: Spill,
        device: Device,
        tell: Callable[[TakenOut], None],
    ) -> None:
        """`tell` hears of each name that is gone, and waits for nobody."""
        self._store = store
        self._books = books
        self._names = names
        self._uses = uses
        self._spill = spill
        self._device = device
        self._tell = tell
        self._since: dict[int, float] = {}
        self._lists = PagedLists(FILES_OF_A_PAGE)
        self._retry_at = 0.0
        self._put_off: dict[int, float] = {}  # files that failed, and until when they are left alone
        self.deleted_files = 0
        self.deleted_bytes = 0

    # -- what there is -----------------------------------------------------------------------------------------------

    def listing(self, after: int = 0) -> UnclaimedPage:
        """A page of the files with unclaimed pages, and the spilled ones, by inode number. From any thread.

        O(page); the first page O(files).
        """
        now, spilled = time.monotonic(), self._spill.files()
        inodes, next_after = self._lists.page(
            "unclaimed", after, lambda: sorted({*self._books.questions.files_where(_is_unclaimed), *spilled})
        )
        listed = []
        for inode in inodes:
            held_bytes = spilled[inode] if inode in spilled else self._unclaimed_bytes(inode)
            with self._store.lock:
                node = self._find(inode)
                if node is None:
                    continue  # gone meanwhile
                path, size_bytes = self._store.display_path(node), self._store.stat(node).st_size
            listed.append(
                UnclaimedFile(
                    path=path,
                    inode=inode,
                    size_bytes=size_bytes,
                    unclaimed_bytes=held_bytes,
                    used_bytes=0 if inode in spilled else self._books.questions.resident_bytes_of(inode) - held_bytes,
                    last_owner=self._books.questions.maker_of(inode),
                    age_seconds=now - self._since.get(inode, now),
                    spilled=inode in spilled,
                )
            )
        return UnclaimedPage(files=tuple(listed), next_after=next_after)

    def _unclaimed_bytes(self, inode: int) -> int:
        return sum(held_bytes for held, held_bytes in self._books.questions.file_holdings(inode) if _is_unclaimed(held))

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def sweep(self, rule: Rule, pins: Pins) -> float:
        """Look which files are unclaimed, and do what `rule` says about those that have been for the grace.

        A file that somebody holds pages of is not spilled. Returns the CPU seconds of the look, which are O(files)
        where any is unclaimed.
        """
        now, began = time.monotonic(), time.thread_time()
        opened = self._uses.take_opened()
        inodes = self._books.questions.files_where(_is_unclaimed)
        spilled = self._spill.files().keys()
        self._since = {inode: now if inode in opened else self._since.get(inode, now) for inode in {*inodes, *spilled}}
        self._books.tidying.forget_makers(self._store.table.made_by)
        took = time.thread_time() - began
        if rule.name in (UnclaimedRule.DELETE, UnclaimedRule.SPILL) and now >= self._retry_at:
            self._apply(rule, pins, inodes, now)
        return took

    def _apply(self, rule: Rule, pins: Pins, inodes: list[int], now: float) -> None:
        self._put_off = {inode: until for inode, until in self._put_off.items() if until > now and inode in self._since}
        for inode in inodes:
            if now - self._since[inode] >= rule.grace_seconds and inode not in self._put_off:
                try:
                    self._delete(inode) if rule.name is UnclaimedRule.DELETE else self._move_to_disk(inode, pins)
                except CannotMove as refusal:
                    self._put_off[inode] = now + _PAUSE_AFTER_FAILURE_SECONDS
                    log.warning("pages of inode %d stay, spill is tried again in a minute: %s", inode, refusal)
                except OSError as error:
                    self._put_off[inode] = now + _PAUSE_AFTER_FAILURE_SECONDS
                    if error.errno != EPERM:  # chattr's +i or +a
                        log.warning("%s of inode %d fails, and is tried again in a minute: %s", rule.name, inode, error)
                    if error.errno in _OF_THE_DISK:
                        self._retry_at = now + _PAUSE_AFTER_FAILURE_SECONDS
                        return  # the other files would fail alike; no other error keeps them waiting

    def _find(self, inode: int) -> Node | None:
        try:
            return self._store.find(inode)
        except OSError:
            return None

    def _is_unclaimed(self, node: Node, found: os.stat_result) -> bool:
        """Whether nobody can be using the file now. Call with the store's lock held."""
        return (
            stat.S_ISREG(found.st_mode)
            and node.inode not in self._store.removed
            and node.opens == 0
            and node.inode not in self._books.changes.shrinking
            and all(_is_unclaimed(held) for held, _ in self._books.questions.file_holdings(node.inode))
            and not self._store.is_open_elsewhere(node)
        )

    def _is_deletable(self, node: Node) -> bool:
        """Whether nobody can be using the file, and its one name is all that keeps it. With the store's lock held."""
        found = self._store.stat(node)
        return (
            found.st_nlink == 1 and node.inode not in self._books.changes.in_change and self._is_unclaimed(node, found)
        )

    def _delete(self, inode: int) -> None:
        taken = self.take_out(inode)
        if taken is not None:
            self._tell(taken)

    def take_out(self, inode: int, mark: bytes = b"") -> TakenOut | None:
        """Remove the only name of a file that nobody can be using; None, and nothing done, for any other.

        `mark` is an extended attribute that it gets. `tell` is to follow. Raises OSError.
        """
        with self._store.lock:
            node = self._find(inode)
            if node is None or not self._is_deletable(node):
                return None
        parent, name = self._store.place_of(node)  # takes as long as a tenant has made the path
        with self._store.lock:
            if not self._is_deletable(node) or self._store.lookup(self._store.find(parent), name)[0].inode != inode:
                return None
            path = self._store.display_path(node)
            held_bytes = self._books.questions.resident_bytes_of(inode)
            if mark:
                os.setxattr(self._store.descriptor_path(node), mark, b"")  # an empty value takes no space
            self._names.unlink_unasked(parent, name)
        self.deleted_files += 1
        self.deleted_bytes += held_bytes
        log.info("deleted %s: unclaimed", path)
        return TakenOut(parent, inode, name, path)

    def oldest_first(self) -> list[tuple[int, int]]:
        """The files that no page of has a payer, with their bytes: those first that have been so for longest.

        Of files that one look found, those first that were written first. From any thread. O(files).
        """
        now, found = time.monotonic(), []
        for inode in self._books.questions.files_where(_is_unclaimed):
            holdings = self._books.questions.file_holdings(inode)
            with suppress(OSError), self._store.lock:
                if all(_is_unclaimed(held) for held, _ in holdings):
                    written_ns = self._store.stat(self._store.find(inode)).st_mtime_ns
                    held_bytes = sum(size for _, size in holdings)
                    found.append((self._since.get(inode, now), written_ns, inode, held_bytes))
        return [(inode, held_bytes) for _, _, inode, held_bytes in sorted(found)]

    def _move_to_disk(self, inode: int, pins: Pins) -> None:
        with self._uses.watched(inode) as used:
            with self._store.lock:
                node = self._find(inode)
                if node is None or not self._is_unclaimed(node, self._store.stat(node)):
                    return

            def is_unchanged() -> bool:
                return not used() and self._is_unclaimed(node, self._store.stat(node))

            if pins.are_none(node, is_unchanged) and self._spill.write(node, is_unchanged):
                self._device.expire_attributes(inode)
                log.info("spilled %s: unclaimed", self._store.display_path(node))


def _is_unclaimed(held: SharingClass) -> bool:
    return held.is_unclaimed
