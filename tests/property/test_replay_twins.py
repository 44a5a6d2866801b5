"""The vectorised replay and its twin agree, under every policy, on any history: states, bills, costs, byte-seconds."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.lab import engine as machine_module
from controller.lab.events import Event, Events, MemoryTrace
from controller.lab.replay import Clocks, Replay
from controller.lab.trace_index import survey
from controller.policies.page_state import Kind, Place
from controller.policies.registry import POLICIES, policy_named
from sharedfs.linux.cgroups import CgroupRef
from tests.property.lab_oracle import Row, SlowReplay

FILES, PAGES, SECOND = 3, 8, 1_000_000
PATHS = ("/ci/a", "/ci/b", "/ci", "/c", "/c/d", "/(nobody)")
CLOCKS = Clocks(bills=7, idle_seconds=20, window_seconds=6)


def batches_of(rows: Sequence[Row], cuts: Sequence[int]) -> tuple[Events, ...]:
    edges = [0, *sorted({cut % (len(rows) + 1) for cut in cuts} - {0, len(rows)}), len(rows)]
    return tuple(_events(rows[start:stop]) for start, stop in pairwise(edges))


def _events(rows: Sequence[Row]) -> Events:
    return Events(
        np.array([row.time_us for row in rows], dtype=np.int64),
        np.array([row.event for row in rows], dtype=np.uint8),
        np.array([row.tenant for row in rows], dtype=np.int32),
        np.array([row.file for row in rows], dtype=np.int32),
        np.array([row.first_page for row in rows], dtype=np.int64),
        np.array([row.last_page for row in rows], dtype=np.int64),
        np.array([row.value for row in rows], dtype=np.int64),
        {number: row.name for number, row in enumerate(rows) if row.name is not None},
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    """Files of each kind, tenants that come and go (some of them parents of others), and whatever they do."""
    rows = [Row(0, Event.FILE, file=kind.value, value=kind.value, name=f"f{kind.value}") for kind in Kind]
    alive: list[int] = []
    started = now_us = 0
    for _ in range(draw(st.integers(1, 40))):
        now_us += draw(st.integers(0, 5)) * SECOND
        action = draw(st.integers(0, 9))
        if not alive or action == 0:
            limit = draw(st.sampled_from([-1, 4096, 5 * 4096]))
            rows.append(Row(now_us, Event.START, tenant=started, value=limit, name=draw(st.sampled_from(PATHS))))
            alive.append(started)
            started += 1
        elif action == 1:
            rows.append(Row(now_us, Event.EXIT, tenant=alive.pop(draw(st.integers(0, len(alive) - 1)))))
        else:
            event = draw(st.sampled_from([Event.ALLOCATE] * 3 + [Event.TOUCH] * 3 + list(Event)[2:6]))
            first, last = sorted(draw(st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1))))
            tenant = draw(st.sampled_from(alive))
            rows.append(
                Row(now_us, event, tenant, draw(st.integers(0, FILES - 1)), first, last, draw(st.integers(0, 3)))
            )
    return rows


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=15)
@given(history=histories(), cuts=st.lists(st.integers(0, 50), max_size=4), rounds=st.sampled_from([0, 1, 32]))
def test_the_replay_and_its_twin_agree(name: str, history: list[Row], cuts: list[int], rounds: int) -> None:
    """Wherever the trace is cut into batches, and whether they are played in rounds or one event after the other."""
    payer = CgroupRef("/ci/a", 4)
    trace = MemoryTrace(batches_of(history, cuts))
    found = survey(trace, lambda rows: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_module, "_MOST_ROUNDS", rounds)
        patch.setattr(machine_module, "_FEW_EVENTS", 0)
        patch.setattr(machine_module, "_SPARE_STATES", 0)  # compact as often as can be
        outcome = Replay(trace, found, [policy_named(name, payer)], CLOCKS).run(lambda rows: None)
    slow = SlowReplay(history, policy_named(name, payer), list(Kind), CLOCKS)

    (meter,) = outcome.meters
    meter.machine.check()
    edges, pages = found.groups.first_pages, found.groups.pages
    states = {
        (int(found.groups.file[group]), int(edges[group]) + offset): state
        for group, state in enumerate(meter.machine.states)
        for offset in range(int(pages[group]))
    }
    there = {key: page for key, page in states.items() if page.place is not Place.ABSENT}
    assert there == {key: page for key, page in slow.books.pages.items() if page.place is not Place.ABSENT}

    effects = meter.machine.effects
    assert effects.moved_at_exit == slow.books.moved_at_exit
    assert effects.moved_on_access == slow.books.moved_on_access
    assert effects.refaulted == slow.books.refaulted
    assert effects.swapped_in == slow.books.swapped_in
    assert [cost.pages for cost in meter.exits] == slow.visited

    cgroups = outcome.accounts.cgroups
    assert {cgroup: level for cgroup, level in zip(cgroups, meter.level, strict=False) if level} == slow.level
    columns = (
        (meter.paid, slow.paid),
        (outcome.even.used, slow.used),
        (meter.error, slow.error),
        (meter.access_error, slow.access_error),
    )
    for fast, known in columns:
        assert fast[: len(cgroups)] == pytest.approx([known.get(cgroup, 0) for cgroup in cgroups], abs=1e-3)
    assert meter.delayed == pytest.approx(slow.delayed)
    assert {cgroups[number] for number in meter.victims} == slow.victims
    assert [(moment.resident_bytes, moment.billed_bytes) for moment in meter.moments] == slow.totals


@pytest.mark.parametrize("name", [name for name in POLICIES if policy_named(name).conserves])
@settings(max_examples=10)
@given(history=histories())
def test_every_policy_that_claims_it_conserves(name: str, history: list[Row]) -> None:
    """I1 at every moment: what is billed and what is nobody's is what is resident, and one owner pays for all."""
    trace = MemoryTrace(batches_of(history, []))
    (meter,) = (
        Replay(trace, survey(trace, lambda rows: None), [policy_named(name, CgroupRef("/payer", 1))], CLOCKS)
        .run(lambda rows: None)
        .meters
    )
    for moment in meter.moments:
        assert moment.billed_bytes + moment.nobody_bytes == moment.resident_bytes
        assert moment.nobody_bytes == 0 or name in ("shared_parent", "proportional", "access_weighted", "fairride")
    resident_pages = sum(pages for pages in meter.machine.resident().values())
    assert meter.resident_bytes == resident_pages
