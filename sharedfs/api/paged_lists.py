"""Lists of inode numbers that answers are cut from, page by page: a list is made once, and not again for each page.

Pure but for its lock; for any thread.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

_LISTS = 8
"""Questions that can be under way at once. One whose list was dropped has it made again."""


class PagedLists:
    """The lists of the last few questions, by any key."""

    def __init__(self, page_length: int) -> None:
        self._page_length = page_length
        self._lists: OrderedDict[object, Sequence[int]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, key: object, after: int, make: Callable[[], Sequence[int]]) -> tuple[Sequence[int], int | None]:
        """A page of the ascending list of `key`, of the numbers beyond `after`; and the `after` of the next page.

        None: there is no more. With `after` 0 the list is made anew, by `make`. O(page), and what `make` takes.
        """
        with self._lock:
            listed = None if after == 0 else self._lists.get(key)
        if listed is None:
            listed = make()
        start = bisect_right(listed, after)
        end = start + self._page_length
        is_last = end >= len(listed)
        with self._lock:
            self._lists.pop(key, None)
            if not is_last:
                self._lists[key] = listed
            while len(self._lists) > _LISTS:
                self._lists.popitem(last=False)
        return listed[start:end], None if is_last else listed[end - 1]
