"""What each operation of each tenant does to each class, worked out once: a table that fills as it is asked.

A rule of `sharing` says where a page goes; a `Step` is that rule over raw ids. Touching pages that one already uses,
which is most of what a pool sees, is then one look-up in `Step.fixed`.

What is memoised stays true while classes are renamed and merged by an exit, but for the one who exits (rules of
different tenants commute, and targets are read through `alias`). It does not survive ageing, nor a `reclaim` of ids.
"""

from collections.abc import Callable, Iterator
from sys import getsizeof

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.class_table import SharingTable
from sharedfs.ledger.class_view import ABSENT, State
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId

Rule = Callable[[State], State]


class Step:
    """One operation as a table over raw ids.

    `fixed` are the raw ids that the operation is known to leave alone: the first question of every hot path.
    """

    __slots__ = ("_rule", "_table", "_targets", "fixed")

    def __init__(self, table: SharingTable, rule: Rule) -> None:
        self._table = table
        self._rule = rule
        self._targets: dict[int, int] = {}
        self.fixed = {ABSENT} if rule(None) is None else set()

    def target(self, raw: int) -> int:
        """The canonical id that pages with id `raw` move to, or `raw` itself when they stay. O(1) once known."""
        target = self._targets.get(raw)
        if target is not None:
            return self._table.alias[target]
        before = self._table.class_of(raw)
        after = self._rule(before)
        if after == before:
            self.fixed.add(raw)
            return raw
        target = self._targets[raw] = self._table.intern(after)
        return target

    @property
    def memory_bytes(self) -> int:
        return getsizeof(self._targets) + getsizeof(self.fixed)

    def check(self) -> None:
        """Raise BrokenInvariant unless everything memoised is what the rule says today. O(memos x users)."""
        for raw in self.fixed:
            before = self._table.class_of(raw)
            if (after := self._rule(before)) != before:
                raise BrokenInvariant(f"I10: id {raw} is memoised as fixed, but {before} -> {after}")
        for raw, target in self._targets.items():
            before, after = self._table.class_of(raw), self._rule(self._table.class_of(raw))
            if after != self._table.class_of(target):
                raise BrokenInvariant(
                    f"I10: {before} -> {after}, but {raw} -> {target}, {self._table.class_of(target)}"
                )


class TenantSteps:
    """The operations of one tenant."""

    __slots__ = ("charge", "charge_foreign", "hand_over", "map", "take_foreign", "touch", "unmap")

    def __init__(self, table: SharingTable, tenant: TenantId) -> None:
        own, foreign = SharingClass.charged_by(tenant), SharingClass.charged_by(tenant, foreign=True)
        self.touch = Step(table, lambda held: held and held.touched_by(tenant))
        self.charge = Step(table, lambda held: held.touched_by(tenant) if held else own)
        self.charge_foreign = Step(table, lambda held: held.touched_by(tenant) if held else foreign)
        self.map = Step(table, lambda held: held and held.mapped_by(tenant))
        self.unmap = Step(table, lambda held: held and held.unmapped_by(tenant))
        self.hand_over = Step(table, lambda held: held and held.handed_to(tenant))
        self.take_foreign = Step(table, lambda held: held and held.charged_to(tenant))

    def __iter__(self) -> Iterator[Step]:
        return iter(
            (self.touch, self.charge, self.charge_foreign, self.map, self.unmap, self.hand_over, self.take_foreign)
        )


class StepMemo:
    """The steps of all tenants over one `SharingTable`."""

    def __init__(self, table: SharingTable) -> None:
        self._table = table
        self._of: dict[TenantId, TenantSteps] = {}
        self.uncharge = Step(table, _to_absent)
        self.recharge = Step(table, _recharged)

    def of(self, tenant: TenantId) -> TenantSteps:
        """The operations of `tenant`; not to be kept across `forget` and `clear`. O(1)."""
        steps = self._of.get(tenant)
        if steps is None:
            steps = self._of[tenant] = TenantSteps(self._table, tenant)
        return steps

    def forget(self, tenant: TenantId) -> None:
        """`tenant` has exited. O(its memos)."""
        self._of.pop(tenant, None)

    def clear(self) -> None:
        """Classes have aged, or ids have been reclaimed. O(memos)."""
        self._of.clear()
        self.uncharge = Step(self._table, _to_absent)
        self.recharge = Step(self._table, _recharged)

    @property
    def memory_bytes(self) -> int:
        """An estimate. O(tenants)."""
        return getsizeof(self._of) + sum(step.memory_bytes for step in self._all())

    def check(self) -> None:
        """Raise BrokenInvariant unless all that is memoised holds today. O(memos x users)."""
        for step in self._all():
            step.check()

    def _all(self) -> Iterator[Step]:
        yield self.uncharge
        yield self.recharge
        for steps in self._of.values():
            yield from steps


def _to_absent(_: State) -> State:
    return None


def _recharged(held: State) -> State:
    return held and held.recharged()
