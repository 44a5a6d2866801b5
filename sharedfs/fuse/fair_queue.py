"""Requests that wait, taken in turns: whoever asks for much waits behind its own requests and not before others'.

Pure. Each party has a queue, first in, first out; the parties that have something waiting take turns, one request each.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Every method is O(1)."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._turns: deque[Hashable] = deque()  # each party in `_waiting` once, the next one first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, party: Hashable, item: Item) -> None:
        """`party` waits with one more item; a new party's turn comes after all that wait already."""
        waiting = self._waiting.get(party)
        if waiting is None:
            waiting = self._waiting[party] = deque()
            self._turns.append(party)
        waiting.append(item)
        self._length += 1

    def pop(self) -> Item:
        """The oldest item of the party whose turn it is. IndexError when nothing waits."""
        party = self._turns.popleft()
        waiting = self._waiting[party]
        item = waiting.popleft()
        if waiting:
            self._turns.append(party)
        else:
            del self._waiting[party]
        self._length -= 1
        return item
