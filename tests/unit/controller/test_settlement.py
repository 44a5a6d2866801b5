"""Each promise of `controller.settlement.settle`, by its name there."""

from dataclasses import replace
from mmap import PAGESIZE

from hypothesis import example, given
from hypothesis import strategies as st

from controller.billing.bill import due_bytes, make_bill
from controller.billing.holdings import SharingClass
from controller.limits.types import Account, Limits, Order, is_above, round_up
from controller.policies.proportional import Proportional
from controller.settlement.pacing import given_up_bytes
from controller.settlement.settle import SLACK_BYTES, Position, raises, settle
from controller.settlement.what_if import what_if_exit
from sharedfs.common.headroom import DEFAULT_ROOM
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion
from tests.support.settlement import plan

V1, V2 = CgroupVersion
MIB = 1 << 20
A, B, C = (CgroupRef(f"/{name}", inode) for inode, name in enumerate("abc", 1))

pages = st.integers(1, 1 << 18).map(lambda count: count * PAGESIZE)
limit = st.none() | pages


@st.composite
def positions(draw: st.DrawFn, version: CgroupVersion) -> Position:
    found, now = (Limits(draw(limit), *((draw(limit), draw(limit)) if version is V2 else ())) for _ in range(2))
    unreclaimable = draw(st.integers(0, 1 << 30))
    ceiling = draw(limit) if version is V1 else None
    if ceiling is not None:  # as the kernel has it, always
        found = Limits(min(ceiling, found.max_bytes or ceiling))
        now = Limits(min(ceiling, now.max_bytes or ceiling))
    usage, in_swap = (draw(st.integers(0, 1 << 30)) for _ in range(2))
    account = Account(now, unreclaimable + usage, unreclaimable, ceiling, in_swap if version is V2 else 0)
    return Position(
        A,
        account,
        found,
        operator_bytes=draw(st.none() | st.integers(1, 1 << 30)),
        due_bytes=draw(st.integers(-(1 << 30), 1 << 30)),
        report_only=draw(st.sampled_from([False, False, False, True])),
        steady_bytes=draw(st.just(0) | st.integers(0, 1 << 30)),
        descent_bytes=draw(st.none() | st.integers(0, 1 << 30)),
        swap_due_bytes=draw(st.integers(0, 1 << 30)) if version is V2 else 0,
    )


def position(budget: int, due: int, usage: int = 0, now: Limits | None = None) -> Position:
    return Position(A, Account(now or Limits(budget), usage, usage), Limits(budget), None, due)


any_v1, any_v2 = positions(V1), positions(V2)


def proceed(old: Position, limits: Limits) -> Position:
    return replace(old, account=replace(old.account, limits=limits))


def at_once(old: Position) -> Position:
    """With all the time in the world."""
    return replace(old, descent_bytes=None)


@given(any_v1)
@example(position(64 * MIB, 10 * MIB + 1))
def test_exact_on_v1(given_position: Position) -> None:
    given_position, target = at_once(given_position), given_position.target_bytes
    if target is None or given_position.report_only:
        return
    if target >= round_up(given_position.needed_bytes + given_position.room_bytes(DEFAULT_ROOM)):
        assert settle(given_position, V1) == Limits(target)
        assert given_position.debt_bytes(Limits(target)) == 0
        headroom = given_position.headroom_bytes(DEFAULT_ROOM)
        assert headroom is not None
        more = replace(given_position, due_bytes=given_position.due_bytes + headroom)
        if given_position.due_bytes >= 0:
            assert more.debt_bytes(settle(more, V1)) == 0, "headroom is what can still be borne"


@given(any_v2)
def test_exact_on_v2(given_position: Position) -> None:
    target, found = given_position.target_bytes, given_position.found
    hard = found.max_bytes is not None or found.high_bytes is None
    if target is None or not hard or given_position.report_only:
        return
    needed = given_position.needed_bytes + given_position.room_bytes(DEFAULT_ROOM)
    if target >= round_up(max(given_position.account.usage_bytes + SLACK_BYTES, needed)):
        assert settle(given_position, V2).max_bytes == target


@given(any_v2)
def test_exact_on_v2_when_page_cache_has_made_way(given_position: Position) -> None:
    """memory.high leads usage to where memory.max can reach the target, with one room to spare.

    Limits are pages: half a room of less than a page, of a budget below 32 KiB, leaves memory.high no place.
    """
    here, found = at_once(given_position), given_position.found
    target, hard = here.target_bytes, found.max_bytes is not None or found.high_bytes is None
    if target is None or not hard or here.report_only:
        return
    if target < round_up(here.needed_bytes + here.room_bytes(DEFAULT_ROOM)):
        return
    if here.room_bytes(DEFAULT_ROOM) < 2 * PAGESIZE:
        return
    for _ in range(3):
        limits = settle(here, V2)
        usage = here.account.usage_bytes
        for limit in (limits.max_bytes, limits.high_bytes):
            usage = usage if limit is None else min(usage, max(limit, here.account.unreclaimable_bytes))
        here = replace(here, account=replace(here.account, limits=limits, usage_bytes=usage))
    assert here.account.limits.max_bytes == target


@given(any_v1, any_v2)
def test_a_report_changes_nothing(on_v1: Position, on_v2: Position) -> None:
    for given_position, version in ((on_v1, V1), (on_v2, V2)):
        told = replace(given_position, report_only=True)
        assert settle(told, version) == told.found
        assert told.debt_bytes(told.found) == 0
        assert told.budget_bytes is None or told.over_bytes >= max(
            0, told.account.usage_bytes + told.due_bytes - told.budget_bytes
        )


def test_the_target_is_budget_less_due_rounded_down_to_a_page() -> None:
    assert settle(position(64 * MIB, 10 * MIB + 1), V1) == Limits(54 * MIB - PAGESIZE)
    assert settle(position(64 * MIB, 10 * MIB), V2).max_bytes == 54 * MIB


@given(any_v1, any_v2)
def test_never_above(on_v1: Position, on_v2: Position) -> None:
    for given_position, version in ((on_v1, V1), (on_v2, V2)):
        intended = settle(given_position, version)
        if given_position.budget_bytes is None or given_position.report_only:
            assert replace(intended, swap_bytes=given_position.found.swap_bytes) == given_position.found
            continue
        assert intended.enforced_bytes is not None
        now, given = given_position.account.limits, given_position.found
        for written, before, found in (
            (intended.max_bytes, now.max_bytes, given.max_bytes),
            (intended.high_bytes, now.high_bytes, given.high_bytes),
        ):
            if written is not None and is_above(written, before):  # a manager may have memory.high above memory.max
                assert written <= max(given_position.budget_bytes, found or 0)
        for written, found in (
            (intended.max_bytes, given_position.found.max_bytes),
            (intended.high_bytes, given_position.found.high_bytes),
        ):
            assert found is None or not is_above(written, found)


@given(any_v1, any_v2)
@example(position(64 * MIB, 60 * MIB, 32 * MIB), position(64 * MIB, 60 * MIB, 32 * MIB))
def test_never_kills(on_v1: Position, on_v2: Position) -> None:
    """What is lowered below the managers' word and below where it is leaves the room that it must."""
    for given_position, version in ((on_v1, V1), (on_v2, V2)):
        account, found = given_position.account, given_position.found
        intended = settle(given_position, version)
        room = given_position.room_bytes(DEFAULT_ROOM)
        slack = min(SLACK_BYTES, room // 2)
        needed = account.usage_bytes if version is V2 else given_position.needed_bytes
        ceiling = given_position.operator_bytes if found.enforced_bytes is None else found.max_bytes
        low = intended.max_bytes
        if low is not None and is_above(account.limits.max_bytes, low) and is_above(ceiling, low + PAGESIZE):
            assert low >= needed + slack
            assert low >= given_position.needed_bytes + room
        high = intended.high_bytes
        lowered = high is not None and is_above(account.limits.high_bytes, high) and is_above(found.high_bytes, high)
        if lowered and is_above(ceiling, high + PAGESIZE):
            assert high >= given_position.needed_bytes + room - slack


@given(any_v1, any_v2)
def test_paced(on_v1: Position, on_v2: Position) -> None:
    for given_position, version in ((on_v1, V1), (on_v2, V2)):
        if given_position.descent_bytes is None or given_position.report_only:
            continue
        account = given_position.account
        before = proceed(given_position, given_position.found)  # a manager lowers as it likes
        order = Order(A, before.account.limits, settle(before, version))
        assert given_up_bytes(order, account.usage_bytes) <= given_position.descent_bytes + PAGESIZE


@given(any_v1, any_v2)
def test_shown(on_v1: Position, on_v2: Position) -> None:
    for given_position, version in ((on_v1, V1), (on_v2, V2)):
        intended = settle(given_position, version)
        told = given_position.report_only
        if given_position.target_bytes is not None and intended.enforced_bytes is not None and not told:
            debt = given_position.debt_bytes(intended)
            assert intended.enforced_bytes == given_position.target_bytes + debt


def test_more_due_than_the_budget_holds_is_debt() -> None:
    broke = position(8 * MIB, 20 * MIB)
    intended = settle(broke, V1)
    assert intended == Limits(2 * MIB), "a quarter of so small a budget"
    assert broke.debt_bytes(intended) == 14 * MIB


@given(st.integers(0, 60), st.integers(0, 60))
def test_never_fed(usage_mib: int, growth_mib: int) -> None:
    for version in (V1, V2):
        before = position(64 * MIB, 40 * MIB, usage_mib * MIB)
        limits = settle(before, version)
        grown = replace(before, account=Account(limits, (usage_mib + growth_mib) * MIB, (usage_mib + growth_mib) * MIB))
        assert not is_above(settle(grown, version).max_bytes, limits.max_bytes)


@given(any_v1, any_v2)
def test_convergent(on_v1: Position, on_v2: Position) -> None:
    on_v1, on_v2 = at_once(on_v1), at_once(on_v2)
    once = proceed(on_v1, settle(on_v1, V1))
    assert plan([once], V1) == ([], [])
    down = proceed(on_v2, settle(on_v2, V2))
    home = proceed(down, settle(down, V2))
    assert plan([home], V2) == ([], [])


def test_v2_goes_down_through_memory_high_and_gives_it_back() -> None:
    """Page cache keeps usage at memory.high, so there must be room for memory.max between it and the target."""
    tenant = Position(A, Account(Limits(64 * MIB), 60 * MIB, 4 * MIB), Limits(64 * MIB), None, 44 * MIB)
    first = settle(tenant, V2)
    assert first == Limits(61 * MIB, 19 * MIB)
    reclaimed = replace(tenant, account=Account(first, 19 * MIB, 4 * MIB))
    second = settle(reclaimed, V2)
    assert second == Limits(20 * MIB, 19 * MIB)
    assert settle(proceed(reclaimed, second), V2) == Limits(20 * MIB, None)


def test_v2_lowers_the_managers_own_memory_high_too() -> None:
    found = Limits(64 * MIB, 48 * MIB)
    both = Position(A, Account(Limits(54 * MIB, 48 * MIB), 0, 0), found, None, 10 * MIB)
    assert settle(both, V2) == Limits(54 * MIB, 38 * MIB)
    only_high = Position(A, Account(Limits(None, 48 * MIB), 0, 0), Limits(None, 48 * MIB), None, 10 * MIB)
    assert settle(only_high, V2) == Limits(None, 38 * MIB)
    assert only_high.budget_bytes == 48 * MIB


@given(any_v2)
def test_swap(given_position: Position) -> None:
    account, found = given_position.account, given_position.found.swap_bytes
    intended, now = settle(given_position, V2), account.limits.swap_bytes
    if given_position.report_only or found is None:
        assert intended.swap_bytes == found
        assert given_position.swap_debt_bytes(intended) == 0
        return
    written, target = intended.swap_bytes, (found - given_position.swap_due_bytes) // PAGESIZE * PAGESIZE
    assert written is not None
    assert written == target + given_position.swap_debt_bytes(intended), "shown"
    assert written <= found, "never above"
    if is_above(now, written) and written < found:
        assert written >= account.swap_usage_bytes + SLACK_BYTES or written == target, "never kills"
    if target >= account.swap_usage_bytes + SLACK_BYTES + PAGESIZE:
        assert written == target, "exact"


def test_swap_that_cannot_be_borne_is_debt_of_its_own() -> None:
    account = Account(Limits(64 * MIB, None, 32 * MIB), 0, 0, swap_usage_bytes=24 * MIB)
    full = Position(A, account, account.limits, None, 0, swap_due_bytes=16 * MIB)
    intended = settle(full, V2)
    assert intended == Limits(64 * MIB, None, 25 * MIB)
    assert (full.debt_bytes(intended), full.swap_debt_bytes(intended)) == (0, 9 * MIB)
    without_any = replace(full, account=Account(Limits(None, None, 0), 0, 0), found=Limits(None, None, 0))
    assert settle(without_any, V2) == Limits(None, None, 0)
    assert without_any.swap_debt_bytes(Limits(None, None, 0)) == 16 * MIB


@given(pages, st.integers(-(1 << 30), 0))
def test_home(budget: int, due: int) -> None:
    for version in (V1, V2):
        assert settle(position(budget, due), version) == Limits(budget)


def test_the_operators_budget_counts_only_where_the_manager_set_none() -> None:
    free = Position(A, Account(Limits(), 0, 0), Limits(), 30 * MIB, 10 * MIB)
    assert settle(free, V1) == Limits(20 * MIB)
    assert settle(replace(free, found=Limits(64 * MIB)), V1) == Limits(54 * MIB)
    assert plan([replace(free, operator_bytes=None)], V1) == ([], [])


@given(st.lists(any_v2, max_size=8))
def test_raise_before_lower(given_positions: list[Position]) -> None:
    raising, lowering = plan(given_positions, V2)
    assert all(map(raises, raising))
    assert not any(map(raises, lowering))
    assert all(order.now != order.intended for order in (*raising, *lowering))


def test_what_an_exit_would_do() -> None:
    nobody = frozenset[CgroupRef]()
    books = {
        SharingClass("p", A, frozenset({A, B, C}), nobody, False): 30 * MIB,
        SharingClass("p", A, frozenset({A}), nobody, False): 7 * MIB,
    }
    bill = make_bill([books], (), Proportional())
    stand = {
        cgroup: Position(cgroup, Account(Limits(54 * MIB), 0, 0), Limits(64 * MIB), None, due_bytes(bill, cgroup))
        for cgroup in (A, B)
    } | {C: Position(C, Account(Limits(), 0, 0), Limits(), None, due_bytes(bill, C))}
    forecast = what_if_exit(A, [books], Proportional(), stand, V1, DEFAULT_ROOM)
    assert forecast.freed_bytes == 7 * MIB
    limited, free = forecast.survivors
    assert (limited.cgroup, limited.share_before_bytes, limited.share_after_bytes) == (B, 10 * MIB, 15 * MIB)
    assert (limited.limit_before_bytes, limited.limit_after_bytes) == (54 * MIB, 49 * MIB)
    assert (free.cgroup, free.limit_before_bytes, free.limit_after_bytes) == (C, None, None)
