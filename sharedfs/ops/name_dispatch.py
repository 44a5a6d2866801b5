"""The namespace on the FUSE wire: all that is frequent, all that changes something, and what pyfuse3 does not know.

A request that passes through pyfuse3 wakes four threads; one that is answered in the channel's request pump wakes two.
And what changes something has to be in the journal with its answer before the kernel has it.

Each handler calls what `ops/name_handlers.py` has for the request, with the namespace's lock held, and commits. The
answer is written when the lock is free again. What takes long is answered beside the pump, by a thread with its own
slot.
"""

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from errno import EINVAL, EIO, ENOSPC
from functools import partial
from os import strerror
from queue import SimpleQueue
from typing import TypeVarTuple

from sharedfs.common.lane import Lane
from sharedfs.fuse.device import Device
from sharedfs.fuse.messages import forgets
from sharedfs.fuse.protocol import Opcode
from sharedfs.fuse.relay import RequestHandler
from sharedfs.fuse.shortage import Shortage
from sharedfs.ops.attributes import Changes
from sharedfs.ops.content import ContentOnDisk
from sharedfs.ops.name_handlers import Act, NameRequests, changes_in
from sharedfs.ops.namespace import Namespace
from sharedfs.storage.journal import PUMP, Journal, Slot

Operands = TypeVarTuple("Operands")


class FrequentRequests:
    """The handlers for the channel. `party_of` says whose turn it is; `on_error` is told what broke long work."""

    def __init__(
        self,
        namespace: Namespace,
        journal: Journal,
        device: Device,
        shortage: Shortage,
        party_of: Callable[[int], Hashable],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._namespace = namespace
        self._names = NameRequests(namespace)
        self._device = device
        self._shortage = shortage
        self._lane_shortage = Shortage(namespace.make_room)  # what the request pump uses without the lock stays
        self._party_of = party_of
        self._slot = journal.slots[PUMP]
        self._lane_slots: SimpleQueue[Slot] = SimpleQueue()
        for slot in journal.slots[PUMP + 1 :]:
            self._lane_slots.put(slot)
        self._slow_lane = Lane(self._lane_slots.qsize(), "reserve", on_error)
        self._open_at_once = self._handler(Opcode.OPEN, self._names.open)
        self.answered = 0
        """By the request pump's thread; those that it handed to a slow lane, too."""

    @property
    def handlers(self) -> Mapping[int, RequestHandler]:
        handlers: dict[int, RequestHandler] = {
            opcode: self._handler(opcode, act) for opcode, act in self._names.acts.items()
        }
        return handlers | {
            Opcode.OPEN: self._open_or_bring_back,
            Opcode.SETATTR: self._setattr,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget,
        }

    def close(self) -> None:
        self._slow_lane.shutdown()
        self._namespace.close()

    def _handler(self, opcode: int, act: Act) -> RequestHandler:
        def handle(unique: int, node: int, thread_id: int, request: memoryview) -> None:
            self.answered += 1
            self._answer(self._slot, unique, opcode, act, node, thread_id, request)

        return handle

    def _answer(
        self,
        slot: Slot,
        unique: int,
        opcode: int,
        act: Callable[[*Operands], bytes],
        *operands: *Operands,
        has_changed: bool = False,
    ) -> None:
        """Take, act, commit, answer, clear: the way of a request through the journal. `act` gives the answer's body.

        `has_changed`: what came before it is not to be done again, whatever is known of inodes.
        """
        error, body, in_pump = 0, b"", slot is self._slot
        shortage = self._shortage if in_pump else self._lane_shortage
        with self._namespace.lock:
            slot.take(unique, opcode)
            before = shortage.waits.pieces
            try:
                try:
                    body = act(*operands)
                except OSError as failure:
                    body = shortage.after(failure, before, partial(act, *operands))
            except (OSError, OverflowError) as failure:
                error = _errno(failure)
            self._commit(slot, error, body, has_changed=has_changed)
        if error == ENOSPC and in_pump:  # the channel answers, or has it done again: nothing has changed
            slot.clear()
            raise OSError(error, strerror(error))
        self._device.reply(unique, error, body)
        slot.clear()

    def _commit(self, slot: Slot, error: int, body: bytes, *, has_changed: bool) -> None:
        """What the request under way has changed becomes what is known of its inodes, and its answer the answer."""
        namespace = self._namespace
        changes, aftermath = namespace.store.take_changes(), namespace.open_files.take_aftermath()
        if not changes and (error or not (has_changed or slot.is_intended)):
            return
        if has_changed or slot is not self._slot:
            # Not with the answer: another request may have changed these words before this one is cleared.
            namespace.store.save(changes)
            changes = []
        slot.commit(error, body, changes, aftermath)
        namespace.open_files.committed(slot.request, changes, aftermath)

    def _forget(self, _unique: int, _node: int, _thread_id: int, request: memoryview) -> None:
        """FORGET and BATCH_FORGET: no answer, and not sent again."""
        unique, opcode, dropped = forgets(request)
        self.answered += 1
        with self._namespace.lock:
            self._slot.take(unique, opcode)
            self._namespace.references.forget_all(unique, dropped)

    def _setattr(self, unique: int, inode: int, thread_id: int, request: memoryview) -> None:
        changes = changes_in(request)

        def slow_change() -> None:
            self._change_slowly(unique, inode, changes, thread_id)

        self.answered += 1
        with self._namespace.lock:
            slowly = self._namespace.attributes.is_slow(inode, changes)
        if slowly:
            self._slow_lane.submit(self._shortage.party(self._party_of, thread_id), slow_change)
            return
        try:
            self._change(self._slot, unique, inode, changes, thread_id)
        except ContentOnDisk:
            self._slow_lane.submit(self._shortage.party(self._party_of, thread_id), slow_change)

    def _change_slowly(self, unique: int, inode: int, changes: Changes, thread_id: int) -> None:
        self._in_slow_lane(lambda slot: self._change(slot, unique, inode, changes, thread_id), unique, inode)

    def _in_slow_lane(self, answer: Callable[[Slot], None], unique: int, inode: int) -> None:
        """Answer a request beside the pump. A file that was spilled to disk is brought back first."""
        slot = self._lane_slots.get()
        try:
            while True:
                with suppress(ContentOnDisk):  # spilled again before we came to use it
                    self._namespace.sizes.bring_back(inode)
                    answer(slot)
                    return
        except OSError as error:  # it cannot come back
            self._device.reply(unique, error.errno or EIO)
        finally:
            self._lane_slots.put(slot)

    def _change(self, slot: Slot, unique: int, inode: int, changes: Changes, thread_id: int) -> None:
        """In two steps, for a long change is made without the lock: the change, and what the inode is like then."""
        namespace = self._namespace
        shortage = self._shortage if slot is self._slot else self._lane_shortage
        try:
            with namespace.lock:
                slot.take(unique, Opcode.SETATTR)
                rest = shortage.again(lambda: namespace.attributes.change(inode, changes, thread_id, slot))
            if rest is not None:
                rest()
        except (OSError, OverflowError) as failure:
            self._device.reply(unique, _errno(failure))
            slot.clear()
        else:
            self._answer(slot, unique, Opcode.SETATTR, lambda: self._names.attributes(inode), has_changed=True)

    def _open_or_bring_back(self, unique: int, inode: int, thread_id: int, request: memoryview) -> None:
        try:
            self._open_at_once(unique, inode, thread_id, request)
        except ContentOnDisk:
            kept = memoryview(bytes(request))
            self._slow_lane.submit(
                self._shortage.party(self._party_of, thread_id),
                lambda: self._in_slow_lane(
                    lambda slot: self._answer(
                        slot, unique, Opcode.OPEN, lambda: self._names.open(inode, thread_id, kept)
                    ),
                    unique,
                    inode,
                ),
            )


def _errno(failure: OSError | OverflowError) -> int:
    """A number on the wire that no system call takes overflows."""
    return EINVAL if isinstance(failure, OverflowError) else failure.errno or EIO
