"""The sharing classes of a ledger, kept: what happens to them is in a log before any page map can name its outcome.

A record is a new class, an exit, an ageing, which classes were settled, or which ids are free. Who replays it gets the
same numbers. Pages are not in it: they are counted again from the page maps.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.class_ids import ClassIds
from sharedfs.ledger.class_view import ABSENT, AGE, DISINHERIT, EXIT, REDUCE, Change, ClassView, State
from sharedfs.ledger.page_ranges import batched
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.storage import Log, MemoryLog, Record
from sharedfs.ledger.tenant import NOBODY, TenantId

UNIT = "unit"
"""Of the log: a file has another unit of accounting."""
_TABLE, _PART, _BEHIND, _CLASS, _SETTLE, _FREE = "table", "part", "behind", "class", "settle", "free"
_CLASSES_OF_A_RECORD = 64
_ALIASES_OF_A_RECORD = 4096


class SharingTable(ClassIds):
    """Each change is a record first. Without a `log` none is kept. `spare_ids`: see `ClassIds`."""

    def __init__(self, spare_ids: int = 1024, log: Log | None = None) -> None:
        super().__init__(spare_ids)
        self._log = MemoryLog() if log is None else log

    def intern(self, key: State) -> int:
        """The canonical id of `key`, a new one when it has none. O(payers)."""
        known = self._current(key)
        if known is not None:
            return known
        raw = self._next_id()
        self._log.append((_CLASS, raw, *_words(key)))
        self._new(raw, key)
        return raw

    def exit(self, tenant: TenantId, heir: TenantId = NOBODY) -> bool:
        """Take `tenant` out of every class, where `heir` follows it as an owner; True when that changed one with pages.

        O(its classes) (I4).
        """
        return self._change(Change(EXIT, tenant, heir), self.ids_of(tenant))

    def age(self) -> bool:
        """Age every class; True when that changed a class with pages. O(classes)."""
        return self._change(Change(AGE), self._touched())

    def reduce(self, owner: TenantId) -> bool:
        """Let one of them pay for each class that `owner` owns (`SharingClass.reduced`). O(its classes)."""
        return self._change(Change(REDUCE, owner), self.ids_owned_by(owner))

    def disinherit(self) -> bool:
        """Forget all heirs. O(classes)."""
        return self._change(Change(DISINHERIT), self._with_heirs())

    def _change(self, change: Change, ids: Collection[int]) -> bool:
        """All classes have followed `change` from here on; those with `ids` are the ones that it may concern."""
        if ids:
            self._log.append(_change_words(change))
        return self._note(change, ids)

    def settle(self, most: int) -> None:
        """Give up to `most` of the classes that are behind the keys that they stand for, and merge those that meet."""
        ids = list(islice(self._behind, most))
        if ids:
            self._log.append((_SETTLE, ids))
            self._settle(ids)

    def free(self, ids: Sequence[int]) -> None:
        """These may be given to other classes. No page map has them, and no step knows them. O(ids)."""
        if ids:
            self._log.append((_FREE, ids))
            self._free(ids)

    # -- The log -------------------------------------------------------------------------------------------------------

    def dump(self) -> Iterator[Record]:
        """All of the table as it is now but its pages, as small records. O(ids), most of it while they are taken."""
        return _records(self.copy(), self._crowded_at)

    def whole(self) -> Record:
        """As `dump`, in one record, as a package reads it that knows no class that is behind. O(ids)."""
        if self._behind:
            raise BrokenInvariant(f"I4: classes {self._behind} are behind, and the table is to be written whole")
        classes = [(raw, *_words(held)) for raw, held in enumerate(self._classes) if held is not None]
        return (_TABLE, len(self.alias), self._crowded_at, classes, _aliases(self))

    def replay(self, record: Record) -> bool:
        """Do again what a record of the log tells of; False when it is not one of the table's."""
        match record:
            case [str(tag), ids, crowded_at, classes, aliases] if tag == _TABLE:
                self._begin_load(ids, crowded_at)
                self._load(classes, aliases)
                self._end_load()
            case [str(tag), classes, aliases] if tag == _PART:
                self._load(classes, aliases)
            case [str(tag), changes, behind] if tag == _BEHIND:
                self._load_behind([Change(*words) for words in changes], behind)
                self._end_load()
            case [str(tag), raw, *words] if tag == _CLASS:
                if raw != self._next_id():
                    raise BrokenInvariant(f"I7: the log of the books gives id {raw} out of turn: {record}")
                self._new(raw, _class_of(words))
            case [str(tag), tenant, *heir] if tag == EXIT:
                self._note(Change(EXIT, tenant, *heir), self.ids_of(tenant))
            case [str(tag), tenant] if tag == REDUCE:
                self._note(Change(REDUCE, tenant), self.ids_owned_by(tenant))
            case [str(tag)] if tag == AGE:
                self._note(Change(AGE), self._touched())
            case [str(tag)] if tag == DISINHERIT:
                self._note(Change(DISINHERIT), self._with_heirs())
            case [str(tag), ids] if tag == _SETTLE:
                self._settle(ids)
            case [str(tag), ids] if tag == _FREE:
                self._free(ids)
            case _:
                return False
        return True

    def _begin_load(self, ids: int, crowded_at: int) -> None:
        if len(self.alias) > 1:
            raise BrokenInvariant(f"I7: the log of the books has {len(self.alias)} ids before its table")
        self.alias = [ABSENT] * ids
        self._classes = [None] * ids
        self._pages = [0] * ids
        self._crowded_at = crowded_at

    def _load(self, classes: Iterable[Record], aliases: Iterable[tuple[int, int]]) -> None:
        for raw, *words in classes:
            self.alias[raw] = raw
            self._adopt(raw, _class_of(words))
        for raw, canonical in aliases:
            self.alias[raw] = canonical
            self._merged.setdefault(canonical, set()).add(raw)
            self._dead += 1

    def _load_behind(self, changes: list[Change], behind: Iterable[tuple[int, int]]) -> None:
        self._changes, self._behind = changes, dict(behind)
        for raw in self._behind:
            held = self._now(raw)
            if held is not None and held.heir != NOBODY:
                self._inherited.setdefault(held.heir, set()).add(raw)

    def _end_load(self) -> None:
        self._vacant = [raw for raw, alias in enumerate(self.alias) if raw != ABSENT and alias == ABSENT]


def _aliases(view: ClassView) -> list[tuple[int, int]]:
    """The ids that stand for another one, with that."""
    return [pair for pair in enumerate(view.alias) if pair[1] not in (pair[0], ABSENT)]


def _records(view: ClassView, crowded_at: int) -> Iterator[Record]:
    classes = [(raw, held) for raw, held in enumerate(view._classes) if held is not None]
    yield (_TABLE, len(view.alias), crowded_at, [], [])
    for part in batched(classes, _CLASSES_OF_A_RECORD):
        yield (_PART, [(raw, *_words(held)) for raw, held in part], [])
    for dead in batched(_aliases(view), _ALIASES_OF_A_RECORD):
        yield (_PART, [], dead)
    yield (_BEHIND, [_change_words(change) for change in view._changes], list(view._behind.items()))


def _change_words(change: Change) -> tuple[Any, ...]:
    """A change as a record has it."""
    if change.tenant == NOBODY and change.kind != REDUCE:
        return (change.kind,)
    return (change.kind, change.tenant) if change.heir == NOBODY else tuple(change)


def _words(key: State) -> tuple[Any, ...]:
    """A class as a record has it: an heir is written as the owner, below zero."""
    if key is None:
        raise BrokenInvariant("I1: the class of absent pages is always known")
    owner = key.owner if key.heir == NOBODY else -key.heir
    return (owner, int(key.foreign), sorted(key.recent), sorted(key.older), sorted(key.mapped))


def _class_of(words: Record) -> SharingClass:
    owner, foreign, recent, older, mapped = words
    users = frozenset(recent), frozenset(older), frozenset(mapped)
    heir = TenantId(max(0, -owner))
    return SharingClass(TenantId(max(0, owner)), *users, foreign=bool(foreign), heir=heir)
