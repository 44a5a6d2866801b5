"""The replay: one trace under many policies, and beside them what each tenant truly used.

The trace is read twice: once for its page groups (`survey`), once to play it. Between two things that concern
everybody (a tenant starts or exits, a generation passes, a bill is due) events are played as one array, by every
policy's machine.

The bills are held against what was truly used (`yardsticks`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.lab.access_counts import Accesses, by_tenant
from controller.lab.accounts import Accounts
from controller.lab.cost_meter import Meter
from controller.lab.engine import Machine, rows_of
from controller.lab.events import OWN_EVENTS, PAGE_EVENTS, Event, Events, Trace
from controller.lab.trace_index import Progress, Survey
from controller.lab.true_use import Yardstick, Yardsticks
from controller.policies.page_state import group_at
from controller.policies.policy import Demand, Policy
from sharedfs.api.types import NOBODY_PATH
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import CgroupRef

MICROSECONDS = 1_000_000
_NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Clocks:
    """`bills` in a trace; `idle_seconds` is what policies that forget remember, as with `sharedfs mount --idle`."""

    bills: int = 256
    idle_seconds: float = 600
    window_seconds: float = 600


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was measured; `figures` makes sense of it. `state_bytes` is what the arrays of states took."""

    survey: Survey
    accounts: Accounts
    meters: Sequence[Meter]
    even: Yardstick
    by_access: Yardstick
    roles: Mapping[str, CgroupRef]
    state_bytes: int

    @property
    def seconds(self) -> float:
        return (self.survey.end_us - self.survey.start_us) / MICROSECONDS


class Replay:
    """One run: make it, `run` it."""

    def __init__(self, trace: Trace, survey: Survey, policies: Iterable[Policy], clocks: Clocks) -> None:
        self._trace = trace
        self._survey = survey
        self._clocks = clocks
        self._accounts = Accounts()
        self._meters_of: dict[Machine, list[Meter]] = {}
        self._policies: list[Meter] = []
        by_rules: dict[str, Machine] = {}
        for policy in policies:
            machine = by_rules.setdefault(policy.rules or policy.name, Machine(policy, survey.groups))
            self._policies.append(Meter(policy, machine, self._accounts))
            self._meters_of.setdefault(machine, []).append(self._policies[-1])
        self._now_us = self._billed_us = survey.start_us
        self._tenants: dict[int, CgroupRef] = {}
        self._slot_of = np.full(survey.highest_tenant + 1, _NO_SLOT, dtype=np.int32)
        self._in_slot: dict[int, CgroupRef] = {}
        self._free_slots = list(range(survey.most_alive))[::-1]
        self._accesses = Accesses(len(survey.groups.kinds), survey.most_alive)
        window_us = round(clocks.window_seconds * MICROSECONDS)
        self._yardsticks = Yardsticks(survey.groups, survey.most_alive, window_us, self._accesses)

    def run(self, progress: Progress) -> Outcome:
        """Raises CallerMistake for a trace that makes no sense, BrokenInvariant for a policy that does not."""
        clock = self._clock()
        due_us, ring = next(clock)
        for events in self._trace.batches():
            first_group, stop_group = self._survey.groups.ranges(events)
            begin = 0
            for row in [*np.flatnonzero(events.event >= PAGE_EVENTS).tolist(), len(events)]:
                while begin < row or (row < len(events) and events.time_us[row] >= due_us):
                    stop = begin + int(np.searchsorted(events.time_us[begin:row], due_us))
                    self._play(events, first_group, stop_group, begin, stop)
                    begin = stop
                    if begin < row or (row < len(events) and events.time_us[row] >= due_us):
                        ring()
                        due_us, ring = next(clock)
                if row < len(events):
                    self._take(events, row)
                begin = row + 1
            progress(len(events))
        self._now_us = self._survey.end_us
        self._tick()
        return Outcome(
            survey=self._survey,
            accounts=self._accounts,
            meters=self._policies,
            even=self._yardsticks.even,
            by_access=self._yardsticks.by_access,
            roles={
                role: self._tenants[number] for role, number in self._trace.roles.items() if number in self._tenants
            },
            state_bytes=sum(machine.memory_bytes for machine in self._meters_of) + self._yardsticks.memory_bytes,
        )

    # -- time ----------------------------------------------------------------------------------------------------------

    def _clock(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """What is due when, in order, without end."""
        start_us, end_us = self._survey.start_us, self._survey.end_us
        periods = (
            (max(1, (end_us - start_us) // self._clocks.bills), self._tick),
            (max(1, round(self._clocks.idle_seconds / 2 * MICROSECONDS)), self._age),
        )
        due = [(start_us + period_us, order) for order, (period_us, _) in enumerate(periods)]
        while True:
            at_us, order = min(due)
            period_us, what = periods[order]
            due[order] = at_us + period_us, order

            def ring(at_us: int = at_us, what: Callable[[], None] = what) -> None:
                self._now_us = at_us
                what()

            yield at_us, ring

    def _tick(self) -> None:
        latest = by_tenant(self._accesses.lately, self._in_slot)
        self._accesses.start_over()
        demand = Demand(by_tenant(self._accesses.weights, self._in_slot), latest, self._accounts.budgets())
        self._bill(demand)
        self._yardsticks.tick(self._now_us, self._accounts)
        for meter in self._policies:
            meter.note_tick((self._now_us - self._survey.start_us) / MICROSECONDS)
        for machine in self._meters_of:
            machine.compact()

    def _age(self) -> None:
        for machine in self._meters_of:
            machine.age()
        self._accesses.fade()

    def _bill(self, demand: Demand | None) -> None:
        """Bills as of now. Without `demand` policies that weigh accesses keep theirs until the next tick."""
        seconds = (self._now_us - self._billed_us) / MICROSECONDS
        self._billed_us = self._now_us
        self._grow()
        for meter in self._policies:
            meter.advance(seconds, self._yardsticks)
        self._yardsticks.advance(seconds)
        for machine, meters in self._meters_of.items():
            changes = machine.changes()
            for meter in meters:
                meter.bill(changes, demand)
        self._grow()

    def _grow(self) -> None:
        """Room for all accounts, in all columns."""
        self._yardsticks.even.grow(self._accounts)
        self._yardsticks.by_access.grow(self._accounts)
        for meter in self._policies:
            meter.grow()

    # -- events --------------------------------------------------------------------------------------------------------

    def _play(
        self, events: Events, first_group: NDArray[np.int64], stop_group: NDArray[np.int64], begin: int, stop: int
    ) -> None:
        """Rows begin..stop-1, all of them events of pages."""
        if begin == stop:
            return
        events_of = events.event[begin:stop]
        slots = self._slot_of[events.tenant[begin:stop]]
        strangers = np.flatnonzero((slots == _NO_SLOT) & (events_of < OWN_EVENTS))
        if len(strangers):
            number = events.tenant[begin + strangers[0]]
            raise CallerMistake(f"tenant {number} of the trace uses pages before it starts or after it exits")
        counted = np.flatnonzero(events_of <= Event.TOUCH)
        self._accesses.count(events.file[begin:stop][counted], slots[counted], events.value[begin:stop][counted])
        times_us, groups = events.time_us[begin:stop], first_group[begin:stop]
        lengths = stop_group[begin:stop] - groups
        if (lengths > 1).any():
            starts = np.repeat(groups - np.cumsum(lengths) + lengths, lengths)
            groups = np.arange(len(starts), dtype=np.int64) + starts
            events_of = np.repeat(events_of, lengths)
            slots, times_us = np.repeat(slots, lengths), np.repeat(times_us, lengths)
        rows = rows_of(events_of, slots)
        for machine in self._meters_of:
            machine.play(rows, groups)
        self._yardsticks.play(events_of, slots, groups, times_us)

    def _take(self, events: Events, row: int) -> None:
        """A row that concerns everybody. What files are the survey has read."""
        self._now_us = int(events.time_us[row])
        number = int(events.tenant[row])
        if events.event[row] == Event.START:
            self._start(number, events.names[row], int(events.value[row]))
        elif events.event[row] == Event.EXIT:
            self._exit(number)

    def _start(self, number: int, path: str, limit_bytes: int) -> None:
        tenant = CgroupRef(path, number + 1)
        slot = self._free_slots.pop()
        self._tenants[number] = self._in_slot[slot] = tenant
        self._slot_of[number] = slot
        self._accounts.start(tenant, limit_bytes)
        self._yardsticks.start(slot, self._accounts.number(tenant), is_nobody=path == NOBODY_PATH)
        for machine in self._meters_of:
            machine.start(slot, tenant)

    def _exit(self, number: int) -> None:
        """Billed just before and just after, to tell what the exit itself changed."""
        slot = int(self._slot_of[number])
        if slot == _NO_SLOT:
            raise CallerMistake(f"tenant {number} of the trace exits before it starts, or twice")
        tenant = self._tenants[number]
        self._bill(None)
        self._yardsticks.tick(self._now_us, self._accounts)
        over = [meter.over_limit() for meter in self._policies]
        self._accounts.exit(tenant)
        self._yardsticks.exit(slot)
        costs = {machine: machine.exit(tenant) for machine in self._meters_of}
        for machine in self._meters_of:
            # What drifted to it from below, when it was a parent.
            machine.exit(group_at(tenant.path))
        self._bill(None)
        for meter, before in zip(self._policies, over, strict=True):
            meter.note_exit(costs[meter.machine], before)
        self._accesses.forget(slot)
        del self._in_slot[slot]
        self._slot_of[number] = _NO_SLOT
        self._free_slots.append(slot)
