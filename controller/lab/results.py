"""What a replay says in figures: one line a policy, one a tenant. Plain data, for tables, pictures and JSON alike.

Shares are of what all tenants truly used, evenly split (docs/policies.md says what each figure means).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.lab.cost_meter import Meter, Moment, jain
from controller.lab.replay import Outcome

CHEATER, TWIN = "cheater", "its twin"


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """Byte-seconds of one tenant, while it lived but for `paid`."""

    tenant: str
    paid: float
    used_evenly: float
    used_by_access: float
    error: float
    access_error: float


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """`most_*` is the largest value at any bill; pages are counted, not groups."""

    policy: str
    conserves: bool
    error: float
    access_error: float
    jain: float
    ridden_free: float
    billed_of_resident: float
    most_dying_groups: int
    most_dying_bytes: int
    most_parent_bytes: int
    most_root_bytes: int
    most_nobody_bytes: int
    most_swapped_bytes: int
    pushed_over_limit: int
    over_limit: int
    exits: int
    most_pages_of_an_exit: int
    mean_pages_of_an_exit: float
    mean_sorts_of_an_exit: float
    moved_at_exit: int
    moved_on_access: int
    evicted: int
    refaulted: int
    swapped_out: int
    swapped_in: int
    stuck: int
    delayed_accesses: float
    gains: dict[str, float]
    cheater_gain: float | None
    tenants: tuple[TenantFigures, ...]
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """`most_alive` tenants at a time; `state_bytes` is what the arrays of the replay took."""

    trace: str
    events: int
    seconds: float
    tenants: int
    most_alive: int
    files: int
    groups: int
    most_resident_bytes: int
    state_bytes: int
    policies: tuple[PolicyFigures, ...]


def figures(trace: str, events: int, outcome: Outcome) -> Figures:
    found = outcome.survey
    return Figures(
        trace=trace,
        events=events,
        seconds=outcome.seconds,
        tenants=len(found.paths),
        most_alive=found.most_alive,
        files=len(found.groups.kinds),
        groups=len(found.groups),
        most_resident_bytes=max((_most(meter.moments, "resident_bytes") for meter in outcome.meters), default=0),
        state_bytes=outcome.state_bytes,
        policies=tuple(_policy(outcome, meter) for meter in outcome.meters),
    )


def _policy(outcome: Outcome, meter: Meter) -> PolicyFigures:
    moments, effects = meter.moments, meter.machine.effects
    tenants = outcome.accounts.is_tenant
    used = outcome.even.used[tenants]
    paid = meter.paid[tenants]
    whole = max(float(used.sum()), 1.0)
    users = used > 0
    visited = [cost.pages for cost in meter.exits] or [0]
    sorts = [cost.sorts for cost in meter.exits] or [0]
    resident = sum(moment.resident_bytes for moment in moments)
    gains = {role: _gain(outcome, meter, outcome.accounts.number(tenant)) for role, tenant in outcome.roles.items()}
    return PolicyFigures(
        policy=meter.policy.name,
        conserves=meter.policy.conserves,
        error=float(meter.error[tenants].sum()) / whole,
        access_error=float(meter.access_error[tenants].sum()) / whole,
        jain=jain(paid[users] / used[users]) if users.any() else 1.0,
        ridden_free=float(np.maximum(0, used - paid).sum()) / whole,
        billed_of_resident=sum(moment.billed_bytes for moment in moments) / max(resident, 1),
        most_dying_groups=_most(moments, "dying_groups"),
        most_dying_bytes=_most(moments, "dying_bytes"),
        most_parent_bytes=_most(moments, "parent_bytes"),
        most_root_bytes=_most(moments, "root_bytes"),
        most_nobody_bytes=_most(moments, "nobody_bytes"),
        most_swapped_bytes=_most(moments, "swapped_bytes"),
        pushed_over_limit=len(meter.victims),
        over_limit=len(meter.over),
        exits=len(meter.exits),
        most_pages_of_an_exit=max(visited),
        mean_pages_of_an_exit=float(np.mean(visited)),
        mean_sorts_of_an_exit=float(np.mean(sorts)),
        moved_at_exit=effects.moved_at_exit,
        moved_on_access=effects.moved_on_access,
        evicted=effects.evicted,
        refaulted=effects.refaulted,
        swapped_out=effects.swapped_out,
        swapped_in=effects.swapped_in,
        stuck=effects.stuck,
        delayed_accesses=sum(meter.delayed.values()),
        gains=gains,
        cheater_gain=gains[CHEATER] - gains[TWIN] if {CHEATER, TWIN} <= gains.keys() else None,
        tenants=_tenants(outcome, meter),
        moments=tuple(moments),
    )


def _gain(outcome: Outcome, meter: Meter, number: int) -> float:
    """The part of what a tenant used that it did not pay; negative when it paid for others."""
    used = float(outcome.even.used[number])
    return (used - float(meter.paid[number])) / used if used else 0.0


def _tenants(outcome: Outcome, meter: Meter) -> tuple[TenantFigures, ...]:
    accounts = outcome.accounts
    columns = (meter.paid, outcome.even.used, outcome.by_access.used, meter.error, meter.access_error)
    return tuple(
        TenantFigures(accounts.cgroups[number].path, *(float(column[number]) for column in columns))
        for number in np.flatnonzero(accounts.is_tenant).tolist()
    )


def _most(moments: Sequence[Moment], name: str) -> int:
    return max((getattr(moment, name) for moment in moments), default=0)
