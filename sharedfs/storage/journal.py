"""The journal: what an answering thread is doing, so that its successor can end it after a kill (I8).

A thread answers one request at a time, so at a kill at most one request of each has had an effect and no answer. Each
thread has a slot in a file of the state:

    intend   what is about to change, where doing it again would not do: written after everything was checked
    commit   the answer, and the words of the inodes that it changes (`node_words`): from here on it counts as done
    clear    the kernel has the answer

`ops/recovery.py` reads the slots when a daemon comes back. What has an intent and no commit is undone or completed
while nobody can look; what is committed is answered again, which the kernel takes only if it had no answer yet.

A FORGET has no answer and is not sent again. The request pump therefore reads requests into a file of the state, and
the slot says how far the forgetting of the request with a given number has come.

A word (eight aligned bytes) is stored whole or not at all by a kill. Each record is made valid by the store of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from sharedfs.fuse import protocol as wire
from sharedfs.pool.schema import StateFile
from sharedfs.storage.fault_injection import Faults, Point
from sharedfs.storage.node_words import Words
from sharedfs.storage.state_files import StateFiles

SLOTS = 5  # the request pump's, and one for each thread of the slow lane
PUMP = 0
_DEATHS_BYTES = 4096
_PUT_OFF = 2  # the place in the file of deaths of the number of a request that is answered later than it was read

# Words of a slot. An intent is valid when its UNIQUE is not 0, and so is a commit.
_INTENT_UNIQUE, _COMMIT_UNIQUE = 0, 1
_KIND, _INODE, _DIRECTORY, _NEW_DIRECTORY, _OTHER, _NAME_BYTES, _NEW_NAME_BYTES = range(2, 9)
_REPLY_BYTES, _ERROR, _NODES, _AFTERMATH, _AFTERMATH_END = 9, 10, 11, 12, 17
_FORGET_UNIQUE, _FORGET_INODE, _FORGET_LOOKUPS, _FORGET_BEGUN, _FORGET_DONE, _FORGET_ENDED = range(17, 23)
_LAST_BACKING = 23

_NAME_AT, _NEW_NAME_AT = 512, 768
_NODES_AT, _REPLY_AT = 1024, 32 << 10
_SLOT_BYTES = 112 << 10
_NODE = Struct("<QQQ")
_WORD = (1 << 64) - 1
MOST_REPLY_BYTES = _SLOT_BYTES - _REPLY_AT


class Kind(IntEnum):
    """What is intended. Which of `Intent`'s fields each of them uses is said in `ops/recovery.py`."""

    MAKE = 1
    LINK = 2
    LINK_NAMELESS = 3
    REMOVE = 4
    RENAME = 5
    MAKE_XATTR = 6
    REMOVE_XATTR = 7
    EXTEND = 8
    CUT = 9


@dataclass(frozen=True, slots=True)
class Intent:
    """One operation: the names are one component each, in the directories with these inode numbers."""

    kind: Kind
    unique: int
    inode: int
    directory: int
    name: bytes
    new_directory: int
    new_name: bytes
    other: int


class Aftermath(NamedTuple):
    """What is done outside of the node table when a request is committed, and may be done again.

    A passthrough id that it made, one to give back; a file, a tenant, and how many handles more (1) or less (-1) the
    tenant has with which it reads the file past us.
    """

    opened_backing: int = 0
    closed_backing: int = 0
    read_inode: int = 0
    reader: int = 0
    handles: int = 0


NOTHING = Aftermath()


@dataclass(frozen=True, slots=True)
class Commit:
    """An answer: `words` are (inode, first, second) as the inode table is to have them."""

    unique: int
    error: int
    reply: bytes
    words: list[Words]
    aftermath: Aftermath


class Slot:
    """One answering thread's part of the journal."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("Q")
        self._unique = 0
        self._opcode = 0

    # -- writing -----------------------------------------------------------------------------------------------------

    def take(self, unique: int, opcode: int) -> None:
        """A request is about to be answered."""
        self._unique, self._opcode = unique, opcode

    def intend(
        self,
        kind: Kind,
        inode: int = 0,
        directory: int = 0,
        name: bytes = b"",
        new_directory: int = 0,
        new_name: bytes = b"",
        other: int = 0,
    ) -> None:
        words = self._words
        words[_KIND], words[_INODE], words[_DIRECTORY], words[_NEW_DIRECTORY] = kind, inode, directory, new_directory
        words[_OTHER], words[_NAME_BYTES], words[_NEW_NAME_BYTES] = other, len(name), len(new_name)
        self._memory[_NAME_AT : _NAME_AT + len(name)] = name
        self._memory[_NEW_NAME_AT : _NEW_NAME_AT + len(new_name)] = new_name
        words[_INTENT_UNIQUE] = self._unique

    @property
    def request(self) -> int:
        """The number of the request taken last; the same when it is sent again."""
        return self._unique & ~wire.UNIQUE_RESEND

    @property
    def is_intended(self) -> bool:
        return self._words[_INTENT_UNIQUE] != 0

    def commit(
        self,
        error: int,
        reply: bytes,
        nodes: Sequence[Words],
        aftermath: Aftermath = NOTHING,
    ) -> None:
        """The request taken last is done with this answer, and `nodes` are to have these words."""
        words, memory, at = self._words, self._memory, _NODES_AT
        words[_ERROR], words[_REPLY_BYTES], words[_NODES] = error, len(reply), len(nodes)
        for place, value in enumerate(aftermath, _AFTERMATH):
            words[place] = value & _WORD
        memory[_REPLY_AT : _REPLY_AT + len(reply)] = reply
        for node in nodes:
            _NODE.pack_into(memory, at, *node)
            at += _NODE.size
        words[_COMMIT_UNIQUE] = self._unique

    def clear(self) -> None:
        """The answer is with the kernel, or nothing was done."""
        words = self._words
        words[_INTENT_UNIQUE] = 0  # first: an intent alone would mean that it is not committed
        words[_COMMIT_UNIQUE] = 0

    def reached(self, point: Point) -> None:
        """Where a test may have the daemon die: `FaultySlot`."""

    @property
    def last_backing(self) -> int:
        """The last backing id that the kernel gave us and that is in an inode's words. It numbers them one by one."""
        return self._words[_LAST_BACKING]

    @last_backing.setter
    def last_backing(self, backing_id: int) -> None:
        self._words[_LAST_BACKING] = backing_id

    # -- forgetting --------------------------------------------------------------------------------------------------

    def begin_forgets(self, unique: int) -> int:
        """The request to forget with this number is taken; how many of its entries are done already."""
        words = self._words
        if words[_FORGET_ENDED] == unique:
            return -1
        if words[_FORGET_UNIQUE] != unique:
            words[_FORGET_UNIQUE] = 0
            words[_FORGET_BEGUN] = words[_FORGET_DONE] = 0
            words[_FORGET_UNIQUE] = unique
        return words[_FORGET_DONE]

    def begin_forget(self, index: int, inode: int, lookups: int) -> None:
        """Entry `index` leaves the inode with so many look-ups."""
        words = self._words
        words[_FORGET_BEGUN] = 0
        words[_FORGET_INODE], words[_FORGET_LOOKUPS] = inode, lookups
        words[_FORGET_BEGUN] = index + 1

    def end_forget(self, index: int) -> None:
        self._words[_FORGET_DONE] = index + 1

    def end_forgets(self) -> None:
        self._words[_FORGET_ENDED] = self._words[_FORGET_UNIQUE]

    def begun_forget(self) -> tuple[int, int] | None:
        """(inode, look-ups it is left with) of an entry that was begun and not ended."""
        words = self._words
        if words[_FORGET_BEGUN] != words[_FORGET_DONE] + 1:
            return None
        return words[_FORGET_INODE], words[_FORGET_LOOKUPS]

    def end_begun_forget(self) -> None:
        self._words[_FORGET_DONE] = self._words[_FORGET_BEGUN]

    # -- reading -----------------------------------------------------------------------------------------------------

    def intent(self) -> Intent | None:
        words = self._words
        if words[_INTENT_UNIQUE] == 0:
            return None
        return Intent(
            Kind(words[_KIND]),
            words[_INTENT_UNIQUE],
            words[_INODE],
            words[_DIRECTORY],
            bytes(self._memory[_NAME_AT : _NAME_AT + words[_NAME_BYTES]]),
            words[_NEW_DIRECTORY],
            bytes(self._memory[_NEW_NAME_AT : _NEW_NAME_AT + words[_NEW_NAME_BYTES]]),
            words[_OTHER],
        )

    def committed(self) -> Commit | None:
        words = self._words
        if words[_COMMIT_UNIQUE] == 0:
            return None
        end = _NODES_AT + words[_NODES] * _NODE.size
        opened, closed, inode, reader, handles = words[_AFTERMATH:_AFTERMATH_END].tolist()
        return Commit(
            words[_COMMIT_UNIQUE],
            words[_ERROR],
            bytes(self._memory[_REPLY_AT : _REPLY_AT + words[_REPLY_BYTES]]),
            [_NODE.unpack_from(self._memory, at) for at in range(_NODES_AT, end, _NODE.size)],
            Aftermath(opened, closed, inode, reader, -1 if handles == _WORD else handles),
        )


class FaultySlot(Slot):
    """For tests: the daemon may die, or break, before each step and after it."""

    def __init__(self, memory: memoryview, faults: Faults) -> None:
        super().__init__(memory)
        self._faults = faults

    def reached(self, point: Point) -> None:
        self._faults.reached(self._opcode, point)

    def take(self, unique: int, opcode: int) -> None:
        super().take(unique, opcode)
        self.reached(Point.TAKEN)

    def intend(
        self,
        kind: Kind,
        inode: int = 0,
        directory: int = 0,
        name: bytes = b"",
        new_directory: int = 0,
        new_name: bytes = b"",
        other: int = 0,
    ) -> None:
        super().intend(kind, inode, directory, name, new_directory, new_name, other)
        self.reached(Point.INTENDED)

    def commit(
        self,
        error: int,
        reply: bytes,
        nodes: Sequence[Words],
        aftermath: Aftermath = NOTHING,
    ) -> None:
        self.reached(Point.DONE)
        super().commit(error, reply, nodes, aftermath)
        self.reached(Point.COMMITTED)

    def clear(self) -> None:
        self.reached(Point.ANSWERED)
        super().clear()

    def begin_forget(self, index: int, inode: int, lookups: int) -> None:
        super().begin_forget(index, inode, lookups)
        self.reached(Point.INTENDED)

    def end_forget(self, index: int) -> None:
        self.reached(Point.DONE)
        super().end_forget(index)

    def end_forgets(self) -> None:
        self.reached(Point.COMMITTED)
        super().end_forgets()


class Journal:
    """The slots, and the place that requests are read into."""

    def __init__(self, state: StateFiles, faults: Faults | None = None) -> None:
        memory = memoryview(state.map(StateFile.JOURNAL, SLOTS * _SLOT_BYTES))
        parts = [memory[start : start + _SLOT_BYTES] for start in range(0, SLOTS * _SLOT_BYTES, _SLOT_BYTES)]
        self.slots = [Slot(part) if faults is None else FaultySlot(part, faults) for part in parts]
        self.request = state.map(StateFile.REQUEST, wire.REQUEST_BYTES)
        self.deaths = memoryview(state.map(StateFile.DEATHS, _DEATHS_BYTES)).cast("Q")
        """A request's number, and how many daemons in a row have died over it."""
        self._put_off = self.deaths[_PUT_OFF : _PUT_OFF + 1]
        self._request_words = memoryview(self.request)[: wire.IN_HEADER.size].cast("Q")

    def answers_put_off(self, unique: int) -> None:
        """The request pump turns to a request that is no more where requests are read into; 0: to those again."""
        self._put_off[0] = unique

    def under_way(self) -> tuple[int, int]:
        """(opcode, number as it was read) of what the request pump was about at last. The opcode is 0 when unknown.

        The number is 0 when the last daemon had read nothing.
        """
        put_off = self._put_off[0]
        if put_off:
            return 0, put_off
        _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(self.request)
        return opcode, unique

    def forget_request(self) -> None:
        """What was read last is dealt with: a daemon that dies before it reads anything died of nothing in there."""
        self._request_words[0] = self._request_words[1] = self._put_off[0] = 0
