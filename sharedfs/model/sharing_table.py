"""Sharing classes under small numbers, so that a page costs four bytes and a tenant's exit costs no page (I4).

A page map holds *raw* ids. `ABSENT` (0) is a page that is not resident; every other id in use stands for a class,
either itself (it is *canonical*) or through an alias, always one step long. Exit and ageing give classes new keys:
where the new key is free the id just takes it, where another id has it the two merge and one becomes an alias. The page
maps are not looked at: they go on saying the old number, and the old number means the new class.

Dead ids come back in a compaction: the ledger writes its page maps through `alias`, then calls `reclaim`. That is due
when ids in use outnumber what lived at the last compaction by a factor, so it is paid for by the ids interned since.

What happens to classes is kept in a log before any page map can name its outcome: a new class, an exit, an ageing. Who
replays it gets the same numbers. Pages are not in it: they are counted again from the page maps.

Pages are counted by double entry: what enters a class leaves another or `ABSENT`, whose count is therefore minus the
resident pages, and the sum over all ids is always 0 (I1).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from sys import getsizeof
from typing import Any

from sharedfs.errors import BrokenInvariant
from sharedfs.model.sharing import SharingClass
from sharedfs.model.storage import Log, MemoryLog, Record
from sharedfs.model.tenant import NOBODY, TenantId

ABSENT = 0

State = SharingClass | None
"""What a page is in: a class, or None while it is absent."""


_TABLE, _CLASS, _EXIT, _AGE, _REDUCE = "table", "class", "exit", "age", "reduce"


class SharingTable:
    """The classes, their ids and their pages. `spare_ids`: dead ids that are never worth a compaction."""

    def __init__(self, spare_ids: int = 1024, log: Log | None = None) -> None:
        self._log = MemoryLog() if log is None else log
        self.alias: list[int] = [ABSENT]
        """Raw id -> canonical id, ABSENT where the id is vacant."""
        self._classes: list[State] = [None]
        self._pages: list[int] = [0]
        self._id_of: dict[State, int] = {None: ABSENT}
        self._ids_of: dict[TenantId, set[int]] = {}
        self._merged: dict[int, list[int]] = {}  # canonical id -> dead ids that stand for it, where there are any
        self._vacant: list[int] = []
        self._spare_ids = spare_ids
        self._crowded_at = spare_ids
        self.crowded = False
        """Whether enough ids were interned since the last compaction to pay for one."""

    def class_of(self, raw: int) -> State:
        """What `raw` stands for. O(1)."""
        return self._classes[self.alias[raw]]

    @property
    def classes(self) -> int:
        """Classes that have an id, also those without pages, which a `reclaim` frees. O(1)."""
        return len(self._id_of) - 1

    def held(self, raw: int) -> SharingClass:
        """The class of a page that is resident. Raises BrokenInvariant when `raw` stands for none. O(1)."""
        held = self.class_of(raw)
        if held is None:
            raise BrokenInvariant(f"I1: a resident page has id {raw}, which stands for no class")
        return held

    def pages_of(self, raw: int) -> int:
        """Pages of the class that `raw` stands for. O(1)."""
        return self._pages[self.alias[raw]]

    def intern(self, key: State) -> int:
        """The canonical id of `key`, a new one when it has none. O(payers)."""
        known = self._id_of.get(key)
        if known is not None:
            return known
        raw = self._vacant[-1] if self._vacant else len(self.alias)
        self._log.append((_CLASS, raw, *_words(key)))
        self._new(raw, key)
        return raw

    def _new(self, raw: int, key: State) -> None:
        if self._vacant:
            self._vacant.pop()
            self.alias[raw] = raw
        else:
            self.alias.append(raw)
            self._classes.append(None)
            self._pages.append(0)
        self._adopt(raw, key)
        self.crowded = self.ids_in_use > self._crowded_at

    def move(self, raw: int, target: int, pages: int) -> None:
        """`pages` pages left the class of `raw` for canonical `target`. O(1)."""
        source = self.alias[raw]
        if source != ABSENT and self._pages[source] < pages:
            raise BrokenInvariant(f"I1: {pages} pages leave {self.class_of(raw)}, which has {self._pages[source]}")
        self._pages[source] -= pages
        self._pages[target] += pages

    @property
    def resident_pages(self) -> int:
        return -self._pages[ABSENT]

    def holdings(self) -> Iterator[tuple[SharingClass, int]]:
        """Classes that have pages, with their pages, by id. O(ids)."""
        for held, pages in zip(self._classes, self._pages, strict=True):
            if held is not None and pages:
                yield held, pages

    def by_id(self) -> Iterator[tuple[int, SharingClass]]:
        """Classes by canonical id, those without pages too. O(ids)."""
        return ((raw, held) for raw, held in enumerate(self._classes) if held is not None)

    # -- New keys: no page is visited ----------------------------------------------------------------------------------

    def exit(self, tenant: TenantId) -> bool:
        """Take `tenant` out of every class; True when that changed a class with pages. O(its classes) (I4)."""
        ids = sorted(self._ids_of.get(tenant, ()))
        if not ids:
            return False
        self._log.append((_EXIT, tenant))
        return self._rekey(ids, lambda held: held.without(tenant))

    def age(self) -> bool:
        """Age every class; True when that changed a class with pages. O(classes)."""
        self._log.append((_AGE,))
        return self._rekey(sorted(self._id_of.values()), lambda held: held.aged())

    def reduce(self, owner: TenantId) -> bool:
        """Let one of them pay for each class that `owner` owns (`SharingClass.reduced`). O(its classes)."""
        self._log.append((_REDUCE, owner))
        return self._rekey(self.ids_owned_by(owner), lambda held: held.reduced())

    def ids_owned_by(self, owner: TenantId) -> list[int]:
        """Canonical ids of the classes that `owner` owns, ascending. O(its classes), for NOBODY O(classes)."""
        ids = self._id_of.values() if owner == NOBODY else self._ids_of.get(owner, ())
        return sorted(raw for raw in ids if (held := self._classes[raw]) and held.owner == owner)

    def _rekey(self, ids: Iterable[int], rule: Callable[[SharingClass], SharingClass]) -> bool:
        """Give each class the key that `rule` makes of the one it has, and merge those whose keys meet."""
        changed: list[tuple[int, SharingClass]] = []
        for raw in ids:
            before = self._classes[raw]
            if before is not None and (after := rule(before)) != before:
                changed.append((raw, after))
        affected = any(self._pages[raw] for raw, _ in changed)
        for raw, _ in changed:  # first all old keys go: one class's new key may be another's old one
            self._disown(raw)
        for raw, key in changed:
            rival = self._id_of.get(key)
            if rival is None:
                self._adopt(raw, key)
            elif len(self._merged.get(raw, ())) <= len(self._merged.get(rival, ())):
                self._merge(raw, rival)
            else:  # the one with fewer aliases dies: an alias is rewritten O(log n) times in its life
                self._disown(rival)
                self._adopt(raw, key)
                self._merge(rival, raw)
        return affected

    def _adopt(self, raw: int, key: State) -> None:
        self._classes[raw] = key
        self._id_of[key] = raw
        for tenant in key.payers if key else ():
            self._ids_of.setdefault(tenant, set()).add(raw)

    def _disown(self, raw: int) -> None:
        key, self._classes[raw] = self._classes[raw], None
        del self._id_of[key]
        for tenant in key.payers if key else ():
            ids = self._ids_of[tenant]
            ids.discard(raw)
            if not ids:
                del self._ids_of[tenant]

    def _merge(self, dying: int, surviving: int) -> None:
        dead = [*self._merged.pop(dying, ()), dying]
        for raw in dead:
            self.alias[raw] = surviving
        self._merged.setdefault(surviving, []).extend(dead)
        self._pages[surviving] += self._pages[dying]
        self._pages[dying] = 0

    # -- Compaction ----------------------------------------------------------------------------------------------------

    @property
    def ids_in_use(self) -> int:
        """Ids that are not vacant: classes, empty classes, aliases and ABSENT. O(1)."""
        return len(self.alias) - len(self._vacant)

    def reclaim(self) -> None:
        """Free dead ids and those of classes without pages. Every page map must hold canonical ids only. O(ids)."""
        self._merged.clear()
        self._vacant.clear()
        for raw in range(len(self.alias) - 1, ABSENT, -1):
            if self.alias[raw] == raw and self._pages[raw]:
                continue
            if self.alias[raw] == raw:
                self._disown(raw)
            if raw == len(self.alias) - 1:
                del self.alias[raw], self._classes[raw], self._pages[raw]
            else:
                self.alias[raw] = ABSENT
                self._vacant.append(raw)
        live = self.ids_in_use
        self._crowded_at = live + max(self._spare_ids, 2 * live)
        self.crowded = False

    # -- The log -------------------------------------------------------------------------------------------------------

    def dump(self) -> Record:
        """All of the table but its pages, as one record. O(ids)."""
        classes = [(raw, *_words(held)) for raw, held in enumerate(self._classes) if held is not None]
        aliases = [pair for pair in enumerate(self.alias) if pair[1] not in (pair[0], ABSENT)]
        return (_TABLE, len(self.alias), self._crowded_at, classes, aliases)

    def replay(self, record: Record) -> bool:
        """Do again what a record of the log tells of; False when it is not one of the table's."""
        match record:
            case [str(tag), ids, crowded_at, classes, aliases] if tag == _TABLE:
                self._load(ids, crowded_at, classes, aliases)
            case [str(tag), raw, *words] if tag == _CLASS:
                if raw != (self._vacant[-1] if self._vacant else len(self.alias)):
                    raise BrokenInvariant(f"I7: the log of the books gives id {raw} out of turn: {record}")
                self._new(raw, _class_of(words))
            case [str(tag), tenant] if tag == _EXIT:
                self._rekey(sorted(self._ids_of.get(tenant, ())), lambda held: held.without(tenant))
            case [str(tag), tenant] if tag == _REDUCE:
                self._rekey(self.ids_owned_by(tenant), lambda held: held.reduced())
            case [str(tag)] if tag == _AGE:
                self._rekey(sorted(self._id_of.values()), lambda held: held.aged())
            case _:
                return False
        return True

    def _load(self, ids: int, crowded_at: int, classes: Iterable[Record], aliases: Iterable[tuple[int, int]]) -> None:
        if len(self.alias) > 1:
            raise BrokenInvariant(f"I7: the log of the books has {len(self.alias)} ids before its table")
        self.alias = [ABSENT] * ids
        self._classes = [None] * ids
        self._pages = [0] * ids
        for raw, *words in classes:
            self.alias[raw] = raw
            self._adopt(raw, _class_of(words))
        for raw, canonical in aliases:
            self.alias[raw] = canonical
            self._merged.setdefault(canonical, []).append(raw)
        self._vacant = [raw for raw in range(ids - 1, ABSENT, -1) if self.alias[raw] == ABSENT]
        self._crowded_at = crowded_at

    def count(self, pages_by_raw: Mapping[int, int]) -> None:
        """So many pages have these raw ids: told once for each file after a replay. O(ids)."""
        for raw, pages in pages_by_raw.items():
            if raw >= len(self.alias) or self.alias[raw] == ABSENT:
                raise BrokenInvariant(f"I7: {pages} pages have id {raw}, which the log of the books does not know")
            self._pages[self.alias[raw]] += pages
            self._pages[ABSENT] -= pages

    # -- Proof ---------------------------------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        """An estimate of what the table takes. O(ids + tenants)."""
        return (
            sum(map(getsizeof, (self.alias, self._classes, self._pages, self._id_of, self._ids_of, self._merged)))
            + sum(map(getsizeof, self._ids_of.values()))
            + sum(getsizeof(held) + 3 * getsizeof(held.payers) for held in self._id_of if held)
        )

    def check(self) -> None:
        """Raise BrokenInvariant unless aliases, index and counts agree. O(ids x payers)."""
        if sum(self._pages):
            raise BrokenInvariant(f"I1: pages do not sum to 0 with those absent: {self._pages}")
        if self._id_of != {self._classes[raw]: raw for raw in self._id_of.values()} or self._id_of[None] != ABSENT:
            raise BrokenInvariant(f"I1: ids {self._id_of} are not those of the classes {self._classes}")
        canonical, vacant = set(self._id_of.values()), set(self._vacant)
        index: dict[TenantId, set[int]] = {}
        for raw, (alias, held, pages) in enumerate(zip(self.alias, self._classes, self._pages, strict=True)):
            state = f"id {raw} -> {alias}, {held}, {pages} pages"
            if alias not in canonical or (alias == raw) != (raw in canonical) or (raw in vacant and alias != ABSENT):
                raise BrokenInvariant(f"I4: an alias is not one step long: {state}")
            if alias not in (raw, ABSENT) and raw not in self._merged.get(alias, ()):
                raise BrokenInvariant(f"I4: an alias that a merge would miss: {state}")
            if alias != raw and (held is not None or pages):
                raise BrokenInvariant(f"I1: a dead id has a class or pages: {state}")
            if raw != ABSENT and pages < 0:
                raise BrokenInvariant(f"I1: a class has less than no pages: {state}")
            if held is not None and (held.recent & held.older or NOBODY in held.payers):
                raise BrokenInvariant(f"I10: a class that no rule makes: {state}")
            for tenant in held.payers if held else ():
                index.setdefault(tenant, set()).add(raw)
        if index != self._ids_of:
            raise BrokenInvariant(f"I4: the tenants' classes are {index}, their index says {self._ids_of}")


def _words(key: State) -> tuple[Any, ...]:
    """A class as a record has it."""
    if key is None:
        raise BrokenInvariant("I1: the class of absent pages is always known")
    return (key.owner, int(key.foreign), sorted(key.recent), sorted(key.older), sorted(key.mapped))


def _class_of(words: Record) -> SharingClass:
    owner, foreign, recent, older, mapped = words
    return SharingClass(owner, frozenset(recent), frozenset(older), frozenset(mapped), foreign=bool(foreign))
