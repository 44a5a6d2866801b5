"""Scenarios: the same seed gives the same trace, and each shows what it was made to show."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from controller.lab.events import Event, Events, MemoryTrace
from controller.lab.replay import Clocks, Replay
from controller.lab.results import PolicyFigures, figures
from controller.lab.scenarios.catalogue import SCENARIOS, scenario_named
from controller.lab.trace_index import survey
from controller.policies.registry import policies_named
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import CgroupRef

SMALL = {"ci-farm": 4_000, "free-rider": 10_000}


def trace_of(name: str, seed: int = 1) -> MemoryTrace:
    scenario = scenario_named(name)
    return MemoryTrace(tuple(scenario.generate(seed, SMALL.get(name, 2_000))), scenario.roles)


@cache
def run(name: str, *policies: str) -> dict[str, PolicyFigures]:
    trace = trace_of(name)
    found = survey(trace, lambda rows: None)
    payer = CgroupRef(found.paths[0], 1)
    outcome = Replay(trace, found, policies_named(policies, payer), Clocks(bills=32)).run(lambda rows: None)
    return {line.policy: line for line in figures(name, trace.rows, outcome).policies}


def columns(parts: Sequence[Events]) -> list[object]:
    names = [name for part in parts for name in part.names.values()]
    fields = ("time_us", "event", "tenant", "file", "first_page", "last_page", "value")
    return [names, *(np.concatenate([getattr(part, field) for part in parts]).tolist() for field in fields)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_trace_in_the_order_of_time(name: str) -> None:
    trace = trace_of(name)
    assert columns(trace.parts) == columns(trace_of(name).parts)
    assert columns(trace.parts) != columns(trace_of(name, seed=2).parts)
    survey(trace, lambda rows: None)  # refuses what is not in order
    exits = sum(int((part.event == Event.EXIT).sum()) for part in trace.parts)
    assert exits == sum(int((part.event == Event.START).sum()) for part in trace.parts) > 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_first_touch_breeds_zombies_in_every_scenario_and_tracking_use_in_none(name: str) -> None:
    told = run(name, "first_touch", "proportional")
    assert told["first_touch"].most_dying_groups > 0
    assert told["proportional"].most_dying_groups == 0
    assert told["proportional"].error < told["first_touch"].error
    assert told["proportional"].most_pages_of_an_exit == 0


def test_a_restarting_pod_launders_its_charge() -> None:
    """What earlier containers wrote is on zombies, or on the parent; no container's limit is ever reached."""
    told = run("pod-restart", "first_touch", "reparent")
    assert told["first_touch"].over_limit == told["reparent"].over_limit == 0
    assert told["first_touch"].most_dying_bytes > 128 << 20
    assert told["reparent"].most_parent_bytes > 128 << 20


def test_recharging_a_large_model_pushes_its_next_owner_over_the_limit() -> None:
    told = run("model-fleet", "recharge_mapped", "recharge_deferred", "avoid_sharing")
    assert told["recharge_mapped"].pushed_over_limit > 0
    assert told["recharge_deferred"].moved_on_access > 0
    assert told["avoid_sharing"].billed_of_resident > 3


def test_who_comes_second_rides_free_until_use_is_tracked() -> None:
    told = run("free-rider", "first_touch", "proportional", "avoid_sharing")
    assert told["first_touch"].gains["free rider"] == 1
    # It reads each piece now and then: a touch counts for three quarters of the idle time, by the yardstick for all.
    assert 0 <= told["proportional"].gains["free rider"] < 0.25
    assert told["avoid_sharing"].gains["free rider"] < -0.5


def test_a_scanner_pays_for_its_byte_as_long_as_its_touch_is_remembered() -> None:
    told = run("one-byte", "first_touch", "proportional", "access_weighted")
    assert told["first_touch"].gains["scanner"] == 1
    assert told["proportional"].gains["scanner"] == pytest.approx(0, abs=0.05)
    assert told["access_weighted"].gains["scanner"] > told["proportional"].gains["scanner"]


def test_a_cheater_gains_nothing_where_its_use_is_seen() -> None:
    told = run("cheater", "first_touch", "recharge_deferred", "proportional", "access_weighted", "fairride")
    assert told["proportional"].cheater_gain == pytest.approx(0, abs=0.05)
    for policy in ("recharge_deferred", "access_weighted", "fairride"):
        assert told[policy].cheater_gain is not None
        assert told[policy].cheater_gain > 0.3


def test_there_is_no_other_scenario() -> None:
    with pytest.raises(CallerMistake, match="there is no scenario of-mine: there are ci-farm"):
        scenario_named("of-mine")
