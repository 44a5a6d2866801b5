"""Sharing classes by id, to be read: those of a `SharingTable`, or a copy of them as they were at one moment.

What happens to very many classes at once, an exit, an ageing or a reduction, is a `Change`: it is noted in one step,
and from then on every class is read as it is after it. Its key is written anew later, some classes at a time
(`SharingTable.settle`); until then the class is *behind*, and its key says what it was before.

To copy is quick (O(ids), at the speed of memory), to work something out for thousands of classes is not: questions
about all classes are answered from a copy, without the lock of the books.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import NamedTuple

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId

State = SharingClass | None
"""What a page is in: a class, or None while it is absent."""

ABSENT = 0
EXIT, AGE, REDUCE, DISINHERIT = "exit", "age", "reduce", "disinherit"


class Change(NamedTuple):
    """EXIT of a tenant, to whose `heir` goes what it owned; AGE, of everybody; REDUCE what a tenant owns
    (`SharingClass.reduced`); DISINHERIT all heirs.
    """

    kind: str
    tenant: TenantId = NOBODY
    heir: TenantId = NOBODY


def followed(held: SharingClass, change: Change) -> SharingClass:
    """What a class is after a change. O(users)."""
    kind, tenant, heir = change
    if kind == EXIT:
        return held.without(tenant, heir)
    if kind == AGE:
        return held.aged()
    if kind == DISINHERIT:
        return replace(held, heir=NOBODY)
    return held.reduced() if held.owner == tenant else held


Predicate = Callable[[SharingClass], bool]


class ClassView:
    """Reads only."""

    def __init__(self) -> None:
        self.alias: list[int] = [ABSENT]
        """Raw id -> canonical id, ABSENT where the id is vacant."""
        self._classes: list[State] = [None]
        self._pages: list[int] = [0]
        self._behind: dict[int, int] = {}
        """Canonical id -> how many of `_changes` its key has followed, where these are not all."""
        self._changes: list[Change] = []

    def copy(self) -> "ClassView":
        """As it is now. O(ids), at the speed of memory."""
        view = ClassView()
        view.alias, view._classes, view._pages = self.alias[:], self._classes[:], self._pages[:]
        view._behind, view._changes = self._behind.copy(), self._changes[:]
        return view

    def class_of(self, raw: int) -> State:
        """What `raw` stands for. O(1), O(users) when it is behind."""
        return self._now(self.alias[raw])

    def held(self, raw: int) -> SharingClass:
        """The class of a page that is resident. Raises BrokenInvariant when `raw` stands for none. As `class_of`."""
        held = self.class_of(raw)
        if held is None:
            raise BrokenInvariant(f"I1: a resident page has id {raw}, which stands for no class")
        return held

    def pages_of(self, raw: int) -> int:
        """Pages of the class that `raw` stands for, under this id. O(1)."""
        return self._pages[self.alias[raw]]

    @property
    def resident_pages(self) -> int:
        return -self._pages[ABSENT]

    def holdings(self) -> list[tuple[SharingClass, int]]:
        """Classes that have pages, with their pages, each once, by id. O(ids)."""
        if not self._behind:
            return [
                (held, pages)
                for held, pages in zip(self._classes, self._pages, strict=True)
                if held is not None and pages
            ]
        found: dict[SharingClass, int] = {}
        for raw, held in self.by_id():
            if self._pages[raw]:
                found[held] = found.get(held, 0) + self._pages[raw]
        return list(found.items())

    def by_id(self) -> Iterator[tuple[int, SharingClass]]:
        """Classes by canonical id, those without pages too. Two ids may have one, where a class is behind. O(ids)."""
        for raw in range(len(self._classes)):
            held = self._now(raw)
            if held is not None:
                yield raw, held

    def held_by(self, pages_by_raw: dict[int, int]) -> list[tuple[SharingClass, int]]:
        """Counts by raw id as counts by class, each once, by canonical id. O(raw ids)."""
        by_id: dict[int, int] = {}
        for raw, count in pages_by_raw.items():
            canonical = self.alias[raw]
            by_id[canonical] = by_id.get(canonical, 0) + count
        found: dict[SharingClass, int] = {}
        for canonical in sorted(by_id):
            held = self.held(canonical)
            found[held] = found.get(held, 0) + by_id[canonical]
        return list(found.items())

    def _now(self, canonical: int) -> State:
        held = self._classes[canonical]
        if held is not None and canonical in self._behind:
            for change in self._changes[self._behind[canonical] :]:
                held = followed(held, change)
        return held


class Verdicts:
    """Which raw ids stand for a class that is wanted, found out once for all that there are.

    An id that has been given to another class since is told by the one that it had.
    """

    def __init__(self, classes: ClassView, wanted: Predicate) -> None:
        self._wanted = wanted
        by_id = {raw: wanted(held) for raw, held in classes.by_id()}
        self._told = {raw: by_id[alias] for raw, alias in enumerate(classes.alias) if alias != ABSENT}
        self._ids = {raw for raw, is_wanted in self._told.items() if is_wanted}

    def wants_any(self, ids: AbstractSet[int], held: Callable[[int], SharingClass]) -> bool:
        """Whether one of `ids` is wanted; `held` tells of those that are new."""
        return not self._ids.isdisjoint(ids) or any(self._wanted(held(raw)) for raw in ids if raw not in self._told)
