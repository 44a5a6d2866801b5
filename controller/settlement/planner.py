"""The planner: from all positions to the orders of one settlement, with what it has to remember between them. Pure.

It knows no clock and writes nothing: the caller says what time it is and carries out the orders. In this order:
what each has needed of late (`peaks`), where each limit should go (`settlement`), what remains as debt and who bears
it (`debts`), which orders go out now (`pacing`), and which limits yield (`watching`). docs/settlement.md states what is
proved of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from controller.limits.types import Limits, Order
from controller.settlement.debts import BearingRule, Debt, DebtAges, bear
from controller.settlement.pacing import Pace, Pacing
from controller.settlement.peaks import Peaks
from controller.settlement.settle import Position, raises, settle
from controller.settlement.watching import Watch, watch
from sharedfs.common.headroom import Room
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion

BEARING_GRACE_SECONDS = 2.0
"""So long a debt stays with the pool in any case: on v2 a limit needs a settlement or two for its way down."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's choices. See deploy/controller.toml."""

    room: Room = field(default_factory=Room)
    pace: Pace = field(default_factory=Pace)
    bearing: BearingRule = "pool"
    settle: bool = True
    admission: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """`raising` first, then `lowering`. `positions` are those given, with what they bear and may give up.

    `put_off` are orders that have to wait. `borne` bytes of the debts are taken off limits of tenants with headroom.
    `watches` are for the limits as they are when the orders are carried out.
    """

    raising: tuple[Order, ...]
    lowering: tuple[Order, ...]
    put_off: tuple[Order, ...]
    positions: Mapping[CgroupRef, Position]
    debts: tuple[Debt, ...]
    borne: Mapping[CgroupRef, int]
    watches: Mapping[CgroupRef, Watch]

    @property
    def ordered(self) -> tuple[Order, ...]:
        """What goes out now, in this order."""
        return *self.raising, *self.lowering


class Planner:
    """`remembered` are needs, `indebted` since when there are debts, as far as an earlier life has told."""

    def __init__(
        self,
        version: CgroupVersion,
        rules: Rules,
        remembered: Mapping[CgroupRef, int] | None = None,
        indebted: Mapping[CgroupRef, float] | None = None,
    ) -> None:
        self.rules = rules
        self.ages = DebtAges(indebted)
        self.pacing = Pacing(rules.pace)
        self._version = version
        self.peaks = Peaks(remembered=remembered)

    def plan(
        self,
        now_seconds: float,
        positions: Iterable[Position],
        *,
        guarded: bool = True,
        unbilled: Iterable[Position] = (),
    ) -> Plan:
        """The settlement of `positions` at `now_seconds`, which never goes back. O(positions log positions).

        Without a guard (`guarded`) no limit is lowered by what would have to yield. Those `unbilled` were settled
        earlier and owe nothing any more: their limits are put back at once, as their managers set them.
        """
        ready = {position.cgroup: self._look(now_seconds, position) for position in positions}
        self.peaks.keep(ready.keys())
        self.pacing.keep(ready.keys())
        debts = self._debts(now_seconds, ready, guarded=guarded)
        borne = self._bear(now_seconds, ready, debts)
        for cgroup, part in borne.items():
            position = ready[cgroup]
            ready[cgroup] = replace(
                position, due_bytes=position.due_bytes + part, inherited_bytes=position.inherited_bytes + part
            )
        raising: list[Order] = []
        lowering: list[Order] = []
        put_off: list[Order] = []
        watches: dict[CgroupRef, Watch] = {}
        for cgroup, position in ready.items():
            now, intended = position.account.limits, self._settle(position, guarded=guarded)
            order = Order(cgroup, now, intended) if intended != now else None
            admitted = self.pacing.admit(now_seconds, order, cgroup, position.account.usage_bytes)
            if order is not None:
                (put_off if not admitted else raising if raises(order) else lowering).append(order)
            watched = watch(position, intended if admitted else now, self._version, self.rules.room)
            if guarded and watched is not None:
                watches[cgroup] = watched
        for position in unbilled:
            order = Order(position.cgroup, position.account.limits, position.found)
            if order.now != order.intended:
                (raising if raises(order) else lowering).append(order)
        return Plan(tuple(raising), tuple(lowering), tuple(put_off), ready, tuple(debts), borne, watches)

    def _settle(self, position: Position, *, guarded: bool) -> Limits:
        if not guarded:
            kept_bytes = max(position.steady_bytes, position.remembered_bytes)
            position = replace(position, due_bytes=position.own_due_bytes, inherited_bytes=0, steady_bytes=kept_bytes)
        return settle(position, self._version, self.rules.room)

    def _look(self, now_seconds: float, position: Position) -> Position:
        account = position.account
        cache_bytes = account.usage_bytes - account.unreclaimable_bytes
        steady_bytes = self.peaks.note(
            now_seconds, position.cgroup, account.unreclaimable_bytes, cache_bytes, account.peak_bytes
        )
        return replace(
            position,
            steady_bytes=steady_bytes,
            remembered_bytes=self.peaks.remembered(position.cgroup),
            descent_bytes=self.pacing.descent_bytes(now_seconds, position.cgroup),
        )

    def _debts(self, now_seconds: float, ready: Mapping[CgroupRef, Position], *, guarded: bool) -> list[Debt]:
        """What remains when all that can be written now is written."""
        remaining = {
            cgroup: position.debt_bytes(self._settle(position, guarded=guarded)) for cgroup, position in ready.items()
        }
        return self.ages.update(now_seconds, remaining)

    def _bear(
        self, now_seconds: float, ready: Mapping[CgroupRef, Position], debts: Iterable[Debt]
    ) -> dict[CgroupRef, int]:
        lasting = [debt for debt in debts if now_seconds - debt.since_seconds >= BEARING_GRACE_SECONDS]
        if not lasting:
            return {}
        debtors = {debt.cgroup for debt in debts}
        headroom = {
            cgroup: room
            for cgroup, position in ready.items()
            if cgroup not in debtors and not position.report_only and (room := position.headroom_bytes(self.rules.room))
        }
        return bear(self.rules.bearing, lasting, headroom)
