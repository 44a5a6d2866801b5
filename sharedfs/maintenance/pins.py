"""Pins: whether a process or a device holds pages of a file that nobody has open or maps, before these are freed.

A buffer of io_uring, for one, holds pages without a file or a mapping. What it stores after the file was copied to disk
would be lost. The kernel does not say which pages are held, but it moves none of them: so the daemon has it move all.
"""

import os
from collections.abc import Callable

from sharedfs.accounting.books import Books
from sharedfs.common.units import PAGE_BYTES
from sharedfs.ops.data import DataPath
from sharedfs.pages.unused_windows import CannotMove, UnusedWindows, why_not_collapsed
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store

QUIET_SECONDS = 0.1
"""Requests wait no longer for a file that nobody uses. 0.1 s is a slow frame."""


class Pins:
    """For one pool and one thread, which is that of `windows`."""

    def __init__(self, store: Store, books: Books, data_path: DataPath, windows: UnusedWindows) -> None:
        self._store = store
        self._books = books
        self._data_path = data_path
        self._windows = windows

    def are_none(self, node: Node, is_unused: Callable[[], bool]) -> bool:
        """Whether nobody holds a page of the file; False when the file came into use meanwhile.

        `is_unused` is asked with the store's lock held. New pins take a use of the file: the answer holds as long as
        the file stays unused. Raises CannotMove when pages are held, or when that cannot be told now. Where the kernel
        collapses no pages it can never be told, and the answer is True.
        """
        window_bytes = self._windows.bytes
        if window_bytes is None or not self._windows.can_be_moved():
            return True
        per_window = window_bytes // PAGE_BYTES
        runs = self._books.questions.runs_where(node.inode, lambda _: True)
        for number in sorted({number for run in runs for number in _numbers(*run, per_window)}):
            with self._data_path.quiet(QUIET_SECONDS), self._store.lock:
                if not is_unused():
                    return False
                self._move(node, number * window_bytes)
        return True

    def _move(self, node: Node, start: int) -> None:
        with self._store.opened(node, os.O_RDWR) as fd, self._books.changes.under_way(node.inode):
            if start < os.fstat(fd).st_size:  # nobody can map what is beyond the end
                try:
                    self._windows.move(node, fd, start)
                except OSError as error:
                    raise CannotMove(why_not_collapsed(error)) from error


def _numbers(first: int, last: int, per_window: int) -> range:
    return range(first // per_window, last // per_window + 1)
