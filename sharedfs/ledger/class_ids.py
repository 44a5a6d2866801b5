"""Sharing classes under small numbers, so that a page costs four bytes and a tenant's exit costs no page (I4).

A page map holds *raw* ids. `ABSENT` (0) is a page that is not resident; every other id in use stands for a class,
either itself (it is *canonical*) or through an alias, always one step long. Exits, ageings and reductions are noted at
once (`class_view`), and give classes new keys when these are settled, some at a time: where the new key is free the id
just takes it, where another id has it the two merge and one becomes an alias. The page maps are not looked at: they go
on saying the old number, and the old number means the new class.

Dead ids come back in a compaction: the ledger writes its page maps through `alias`, then frees them. That is due
when ids in use outnumber what lived at the last compaction by a factor, so it is paid for by the ids interned since.

Pages are counted by double entry: what enters a class leaves another or `ABSENT`, whose count is therefore minus the
resident pages, and the sum over all ids is always 0 (I1).

Nothing of it is kept here: `class_table.SharingTable` writes down each change before it makes it.
"""

from collections.abc import Collection, Iterable, Mapping, Set
from heapq import heappop, heappush
from itertools import islice
from sys import getsizeof

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.class_view import ABSENT, Change, ClassView, State, followed
from sharedfs.ledger.tenant import NOBODY, TenantId

_LOOKED_AT = 1024
_CLASS_BYTES = 900
"""About what a class takes here, with its sets."""


class ClassIds(ClassView):
    """The classes, their ids and their pages. `spare_ids`: dead ids that are never worth a compaction."""

    def __init__(self, spare_ids: int) -> None:
        super().__init__()
        self._id_of: dict[State, int] = {None: ABSENT}
        """Ids by key. Of a class that is behind it may be there, and does not count (`_current`)."""
        self._ids_of: dict[TenantId, set[int]] = {}
        self._inherited: dict[TenantId, set[int]] = {}
        """Of classes that are behind: those that may have this heir by now, which their keys do not say."""
        self._merged: dict[int, set[int]] = {}  # canonical id -> dead ids that stand for it, where there are any
        self._dead = 0  # ids that stand for another one
        self._foreign: set[int] = set()  # canonical ids of the classes whose key is foreign
        self._vacant: list[int] = []  # a heap: the smallest goes first, whoever continues the log
        self._spare_ids = spare_ids
        self._crowded_at = spare_ids
        self.crowded = False
        """Whether enough ids were interned since the last compaction to pay for one."""

    @property
    def classes(self) -> int:
        """Classes that have an id, also those without pages, which a compaction frees. O(1)."""
        return self.ids_in_use - self._dead - 1

    @property
    def classes_with_pages(self) -> int:
        """O(ids), at the speed of memory. A class that is behind may be the same as another one."""
        return len(self._pages) - self._pages.count(0) - (self._pages[ABSENT] != 0)

    @property
    def foreign_pages(self) -> int:
        """O(foreign classes)."""
        return sum(self._pages[raw] for raw in self._foreign)

    def ids_of(self, tenant: TenantId) -> Set[int]:
        """Canonical ids of the classes that `tenant` is in, or was in when their keys were written.

        O(1), and O(its classes) while there are some that it inherits and that are behind.
        """
        ids: Set[int] = self._ids_of.get(tenant, frozenset())
        inherited = self._inherited.get(tenant)
        return ids | inherited if inherited else ids

    def _current(self, key: State) -> int | None:
        """The id of the class that has this key and is not behind."""
        known = self._id_of.get(key)
        return None if known is None or known in self._behind else known

    def _next_id(self) -> int:
        return self._vacant[0] if self._vacant else len(self.alias)

    def _new(self, raw: int, key: State) -> None:
        if self._vacant:
            heappop(self._vacant)
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

    # -- Changes of many classes: no page is visited -------------------------------------------------------------------

    def _touched(self) -> list[int]:
        return [raw for raw, held in enumerate(self._classes) if held is not None and (held.recent or held.older)]

    def _with_heirs(self) -> list[int]:
        return [
            raw for raw in range(len(self._classes)) if (held := self._now(raw)) is not None and held.heir != NOBODY
        ]

    def ids_owned_by(self, owner: TenantId) -> list[int]:
        """Canonical ids of the classes that `owner` owns. O(its classes), for NOBODY O(classes)."""
        ids: Iterable[int] = range(len(self._classes)) if owner == NOBODY else self._ids_of.get(owner, ())
        return [raw for raw in ids if (held := self._now(raw)) is not None and held.owner == owner]

    def _note(self, change: Change, ids: Collection[int]) -> bool:
        if not ids:
            return False
        behind = self._behind
        looked_at = islice(ids, _LOOKED_AT)  # where none of these changes, others may
        changed = len(ids) > _LOOKED_AT or any(
            self._pages[raw] and self._is_changed_by(raw, change) for raw in looked_at
        )
        place = len(self._changes)
        self._changes.append(change)
        if change.heir != NOBODY:
            self._inherited.setdefault(change.heir, set()).update(ids)
        behind.update(dict.fromkeys([raw for raw in ids if raw not in behind], place))
        return changed

    def _is_changed_by(self, canonical: int, change: Change) -> bool:
        held = self._now(canonical)
        return held is not None and followed(held, change) != held

    @property
    def behind(self) -> int:
        """Classes whose key is yet to follow what happened to them. O(1)."""
        return len(self._behind)

    def _settle(self, ids: Iterable[int]) -> None:
        for raw in ids:
            if raw not in self._behind:
                continue  # it was merged into another one of `ids`
            key = self._now(raw)
            self._disown(raw)
            rival = self._current(key)
            if rival is None:
                self._adopt(raw, key)
            elif len(self._merged.get(raw, ())) <= len(self._merged.get(rival, ())):
                self._merge(raw, rival)
            else:  # the one with fewer aliases dies: an alias is rewritten O(log n) times in its life
                self._disown(rival)
                self._adopt(raw, key)
                self._merge(rival, raw)
        self._forget_changes()

    def _forget_changes(self) -> None:
        """That every class has followed."""
        if not self._behind:
            self._changes.clear()
            self._inherited.clear()

    def _adopt(self, raw: int, key: State) -> None:
        self._classes[raw] = key
        self._id_of[key] = raw
        if key is not None and key.foreign:
            self._foreign.add(raw)
        for tenant in key.tenants if key else ():
            self._ids_of.setdefault(tenant, set()).add(raw)

    def _disown(self, raw: int) -> None:
        key, self._classes[raw] = self._classes[raw], None
        if self._behind.pop(raw, None) is not None:
            for inherited in self._inherited.values():
                inherited.discard(raw)
        self._foreign.discard(raw)
        if self._id_of.get(key) == raw:
            del self._id_of[key]
        for tenant in key.tenants if key else ():
            ids = self._ids_of[tenant]
            ids.discard(raw)
            if not ids:
                del self._ids_of[tenant]

    def _merge(self, dying: int, surviving: int) -> None:
        dead = self._merged.pop(dying, set())
        dead.add(dying)
        self._dead += 1
        for raw in dead:
            self.alias[raw] = surviving
        self._merged.setdefault(surviving, set()).update(dead)
        self._pages[surviving] += self._pages[dying]
        self._pages[dying] = 0

    # -- Compaction ----------------------------------------------------------------------------------------------------

    @property
    def ids_in_use(self) -> int:
        """Ids that are not vacant: classes, empty classes, aliases and ABSENT. O(1)."""
        return len(self.alias) - len(self._vacant)

    def dead_ids(self) -> frozenset[int]:
        """Those that stand for another one. O(dead ids)."""
        return frozenset().union(*self._merged.values())

    def empty_ids(self, start: int, most: int) -> list[int]:
        """Of `most` ids from `start` on, those of classes without pages for which no other id stands. O(most)."""
        ids = range(max(start, ABSENT + 1), min(start + most, len(self.alias)))
        return [raw for raw in ids if self.alias[raw] == raw and not self._pages[raw] and raw not in self._merged]

    def _free(self, ids: Iterable[int]) -> None:
        for raw in ids:
            canonical = self.alias[raw]
            if self._pages[raw]:
                raise BrokenInvariant(f"I1: id {raw} is to be free and has {self._pages[raw]} pages")
            if canonical == raw:
                self._disown(raw)
            else:
                self._dead -= 1
                self._merged[canonical].discard(raw)
                if not self._merged[canonical]:
                    del self._merged[canonical]
            self.alias[raw] = ABSENT
            heappush(self._vacant, raw)
        self._forget_changes()

    def compacted(self) -> None:
        """What can be free is. O(vacant ids)."""
        while self.alias[-1] == ABSENT and len(self.alias) > 1:
            del self.alias[-1], self._classes[-1], self._pages[-1]
        self._vacant = sorted(raw for raw in self._vacant if raw < len(self.alias))
        live = self.ids_in_use
        self._crowded_at = live + max(self._spare_ids, 2 * live)
        self.crowded = False

    # -- Proof ---------------------------------------------------------------------------------------------------------

    def count(self, pages_by_raw: Mapping[int, int]) -> None:
        """So many pages have these raw ids: told once for each file after a replay. O(ids)."""
        for raw, pages in pages_by_raw.items():
            if raw >= len(self.alias) or self.alias[raw] == ABSENT:
                raise BrokenInvariant(f"I7: {pages} pages have id {raw}, which the log of the books does not know")
            self._pages[self.alias[raw]] += pages
            self._pages[ABSENT] -= pages

    @property
    def memory_bytes(self) -> int:
        """An estimate of what the table takes. O(tenants)."""
        return (
            sum(map(getsizeof, (self.alias, self._classes, self._pages, self._id_of, self._ids_of, self._merged)))
            + sum(map(getsizeof, self._ids_of.values()))
            + self.classes * _CLASS_BYTES
        )

    def check(self) -> None:
        """Raise BrokenInvariant unless aliases, index and counts agree. O(ids x payers)."""
        if sum(self._pages):
            raise BrokenInvariant(f"I1: pages do not sum to 0 with those absent: {self._pages}")
        canonical = {raw for raw, held in enumerate(self._classes) if held is not None}
        settled = {self._classes[raw]: raw for raw in canonical - self._behind.keys()} | {None: ABSENT}
        if {key: raw for key, raw in self._id_of.items() if raw not in self._behind} != settled or any(
            self._classes[raw] != key for key, raw in self._id_of.items()
        ):
            raise BrokenInvariant(f"I1: ids {self._id_of} are not those of the classes {self._classes}")
        if not self._behind.keys() <= canonical or bool(self._behind) != bool(self._changes):
            raise BrokenInvariant(f"I4: classes {self._behind} are behind, the changes are {self._changes}")
        if self.classes != len(canonical) or self.dead_ids() != {
            raw for raw, alias in enumerate(self.alias) if alias not in (raw, ABSENT)
        }:
            raise BrokenInvariant(f"I4: an alias that a merge would miss: {self.alias}, {self._merged}, {self._dead}")
        if self._foreign != {raw for raw in canonical if (held := self._classes[raw]) and held.foreign}:
            raise BrokenInvariant(f"I2: foreign classes are {self._foreign}")
        self._check_ids(canonical | {ABSENT}, set(self._vacant))

    def _check_ids(self, canonical: set[int], vacant: set[int]) -> None:
        index: dict[TenantId, set[int]] = {}
        for raw, (alias, held, pages) in enumerate(zip(self.alias, self._classes, self._pages, strict=True)):
            state = f"id {raw} -> {alias}, {held}, {pages} pages"
            if alias not in canonical or (alias == raw) != (raw in canonical) or (raw in vacant and alias != ABSENT):
                raise BrokenInvariant(f"I4: an alias is not one step long: {state}")
            if alias != raw and (held is not None or pages):
                raise BrokenInvariant(f"I1: a dead id has a class or pages: {state}")
            if raw != ABSENT and pages < 0:
                raise BrokenInvariant(f"I1: a class has less than no pages: {state}")
            if held is not None and (
                held.recent & held.older or NOBODY in held.payers or NOBODY not in (held.heir, held.owner)
            ):
                raise BrokenInvariant(f"I10: a class that no rule makes: {state}")
            for tenant in held.tenants if held else ():
                index.setdefault(tenant, set()).add(raw)
        for raw in self._behind:
            held = self._now(raw)
            if any(raw not in self.ids_of(tenant) for tenant in (held.tenants if held else ())):
                raise BrokenInvariant(f"I4: class {raw} became {held}, and an exit would miss it")
        if index != self._ids_of:
            raise BrokenInvariant(f"I4: the tenants' classes are {index}, their index says {self._ids_of}")
