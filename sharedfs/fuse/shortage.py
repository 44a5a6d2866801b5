"""Shortage: what is done when a request finds no descriptor or no space left, before its caller hears of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC
from functools import partial
from typing import Protocol, TypeVar

from sharedfs.common.errors import SCARCE

_MOST_PIECES_FOR_QUOTA = 4  # whose files are freed is not known
_THE_POOLS_OWN = {EMFILE: ENFILE, ENOMEM: ENOSPC}

Outcome = TypeVar("Outcome")


def as_told(error: int) -> int:
    """The errno that a caller reads: it is not the caller who has no descriptor left, or who reached a limit."""
    return _THE_POOLS_OWN.get(error, error)


def _nothing_gives_way(_request: memoryview) -> bool:
    return False


def _no_room() -> None:
    """Nobody has a descriptor to spare."""


class Waiting(Protocol):
    """What waits to be freed. `pieces` counts those that have gone."""

    pieces: int

    def freed_since(self, pieces: int) -> bool:
        """Free one; whether any has gone since there were so many `pieces`."""


class NothingWaits:
    pieces = 0

    def freed_since(self, _pieces: int) -> bool:
        return False


def _nobody_hears() -> None:
    """Nobody is told that a pool is full."""


def _nobody_has_any() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Shortage:
    """Of one pool. For the request pump's thread, but for `give_way`.

    `make_room` closes descriptors that can be opened anew. `give_way` frees space for a request that found none
    (ENOSPC); whether it did. `found_none` hears of a request that is told and fails for want of space, in the thread
    that answers it. `let_others_close` waits for other threads of the daemon, which may have had a removed file open;
    whether there may be any.

    Who is in a hurry reads `waits.pieces`, does what is to be done, and calls `after` with the error.
    """

    make_room: Callable[[], None] = _no_room
    waits: Waiting = field(default_factory=NothingWaits)
    give_way: Callable[[memoryview], bool] = _nothing_gives_way
    found_none: Callable[[], None] = _nobody_hears
    let_others_close: Callable[[], bool] = _nobody_has_any

    def again(self, act: Callable[[], Outcome], request: memoryview | None = None) -> Outcome:
        """Do `act`, and again when its error can be remedied: it has changed nothing then.

        For want of space, what waits to be freed goes first; then files give way to `request`, if it is told.
        """
        before = self.waits.pieces
        try:
            return act()
        except OSError as error:
            return self.after(error, before, act, request)

    def after(
        self, error: OSError, before: int, act: Callable[[], Outcome], request: memoryview | None = None
    ) -> Outcome:
        """The rest of `again`, after the first failure; so many pieces had gone `before` that. Raises `error`."""
        has_room, others_closed, pieces = False, False, 0
        while True:
            if error.errno in SCARCE and not has_room:
                self.make_room()
                has_room = True
            elif error.errno == EDQUOT and pieces < _MOST_PIECES_FOR_QUOTA and self.waits.freed_since(before):
                pieces += 1
            elif error.errno != ENOSPC:
                raise error
            elif self.waits.freed_since(before):
                pass
            elif not others_closed and self.let_others_close():
                others_closed = True
            elif request is None or not self.give_way(request):
                if request is not None:  # else who called is to find some, or to answer
                    self.found_none()
                raise error
            before = self.waits.pieces
            try:
                return act()
            except OSError as another:
                error = another

    def party(self, party_of: Callable[[int], Outcome], thread_id: int) -> Outcome | None:
        """Who asks, for turns. Those for whom no descriptor is left have one turn together."""
        before = self.waits.pieces
        try:
            try:
                return party_of(thread_id)
            except OSError as error:
                return self.after(error, before, partial(party_of, thread_id))
        except OSError:
            return None
