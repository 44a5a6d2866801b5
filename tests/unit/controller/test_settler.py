"""The writer of limits and its journal: nobody waits for a slow tenant, and every way to die is mended (I6)."""

import os
import signal
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from errno import EROFS
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import controller
from controller.limits.types import Budget, KernelLimits, Limits, Order, managers_limits
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from controller.persistence.database import DamagedDatabase
from controller.persistence.debt_ages import KeptDebts
from controller.persistence.state import State
from controller.service.limit_writer import Settler
from controller.service.liveness import is_populated
from controller.service.restore import restore
from controller.settlement.pacing import Pace
from controller.settlement.planner import Planner, Rules
from controller.settlement.settle import Position
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion
from tests.contract.fake_cgroups import FakeCgroups
from tests.support.kills import killed_at_line, lines_of, run_in_child
from tests.support.settlement import plan

MIB = 1 << 20


def limits_of(fake: FakeCgroups) -> KernelLimits:
    if fake.hierarchy.version is CgroupVersion.V1:
        return LimitsV1(fake.hierarchy, fake.write)
    return LimitsV2(fake.hierarchy, fake.write)


def lowering(cgroup: CgroupRef, now: int, intended: int) -> tuple[Order, Limits]:
    return Order(cgroup, Limits(now), Limits(intended)), Limits(now)


def with_settler(fake: FakeCgroups, state: State, test: Callable[[Settler], Awaitable[None]]) -> None:
    async def run() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await test(Settler(limits_of(fake), state, nursery, 4))
                nursery.cancel_scope.cancel()

    trio.run(run)


@pytest.fixture
def fake(tmp_path: Path) -> FakeCgroups:
    made = FakeCgroups(tmp_path / "memory", CgroupVersion.V1)
    for name in ("/slow", "/quick"):
        made.make(name)
        made.manager_sets(name, 64 * MIB)
    return made


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Where a sync costs nothing."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def ref(fake: FakeCgroups, path: str) -> CgroupRef:
    found = fake.hierarchy.find(path)
    assert found is not None
    return found


def test_a_tenant_whose_write_is_slow_holds_up_nobody_else(fake: FakeCgroups, tmp_path: Path) -> None:
    state = State(tmp_path)
    reclaimed = threading.Event()
    fake.before_write = lambda path: None if path != "/slow" else (reclaimed.wait(10), None)[1]
    slow, quick = ref(fake, "/slow"), ref(fake, "/quick")
    found = {slow: Limits(64 * MIB), quick: Limits(64 * MIB)}

    async def test(settler: Settler) -> None:
        await settler.carry_out(
            [], [lowering(slow, 64 * MIB, 50 * MIB)[0], lowering(quick, 64 * MIB, 50 * MIB)[0]], found
        )
        assert fake.limit("/quick") == 50 * MIB
        assert settler.busy == {slow}
        # An order for the slow one waits its turn; the quick one goes on.
        await settler.carry_out(
            [], [lowering(slow, 64 * MIB, 40 * MIB)[0], lowering(quick, 50 * MIB, 40 * MIB)[0]], found
        )
        assert fake.limit("/quick") == 40 * MIB
        with trio.move_on_after(0.05) as gave_up:
            await settler.restore_all()
        assert gave_up.cancelled_caught
        assert set(state.journal()) == {slow, quick}
        reclaimed.set()
        assert await settler.restore_all() == []
        assert fake.limit("/slow") == fake.limit("/quick") == 64 * MIB
        assert state.journal() == {}

    with_settler(fake, state, test)
    state.close()


def test_what_the_kernel_refuses_is_said_once_and_forgotten_groups_leave_the_journal(
    fake: FakeCgroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path)
    slow, quick = ref(fake, "/slow"), ref(fake, "/quick")
    fake.occupy("/slow", 60 * MIB)
    (fake.hierarchy.directory("/quick") / "memory.stat").write_text("nonsense\n")

    async def test(settler: Settler) -> None:
        for _ in range(2):
            await settler.carry_out([], [lowering(slow, 64 * MIB, 8 * MIB)[0]], {slow: Limits(64 * MIB)})
            readings = await settler.read([slow, quick, CgroupRef("/nowhere", 1)])
            assert readings.accounts[slow].limits == Limits(64 * MIB)
            assert readings.unreadable == {quick}
            assert readings.gone == {CgroupRef("/nowhere", 1)}
        assert settler.found(slow, Limits(64 * MIB)) == Limits(64 * MIB)
        assert settler.found(slow, Limits(32 * MIB)) == Limits(32 * MIB)
        await settler.forget([slow, quick])
        assert state.journal() == {}

    with_settler(fake, state, test)
    assert [record.message.split("/")[-1] for record in caplog.records] == [
        f"memory.limit_in_bytes: cannot write {8 * MIB}: the tenant uses more than that",
        "memory.stat: lines are not `KEY NUMBER`: 'nonsense\\n'",
    ]
    state.close()


def test_the_journal_and_the_budgets_survive_us_but_the_journal_no_reboot(tmp_path: Path) -> None:
    state = State(tmp_path, "this boot")
    a = CgroupRef("/a", 7)
    found = Limits(64 * MIB, None, 32 * MIB)
    state.announce([(Order(a, found, Limits(50 * MIB, 49 * MIB, 30 * MIB)), found)])
    state.set_budget("/b", Budget(32 * MIB, report_only=True))
    state.set_budget("/c", Budget(32 * MIB))
    state.clear_budget("/c")
    state.close()
    again = State(tmp_path, "this boot")
    entry = again.journal()[a]
    assert entry.found == found
    assert entry.ours == (found, Limits(50 * MIB, 49 * MIB, 30 * MIB))
    again.close()
    rebooted = State(tmp_path, "next boot")
    assert rebooted.journal() == {}
    assert rebooted.budgets() == {"/b": Budget(32 * MIB, report_only=True)}
    rebooted.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "controller.db").write_text("no database, whatever it is, in at least sixteen bytes")
    with pytest.raises(DamagedDatabase, match=r"other/controller\.db"):
        State(tmp_path / "other")


def test_a_journal_from_before_limits_of_swap_is_read_and_goes_on(tmp_path: Path) -> None:
    a = CgroupRef("/a", 7)
    order, found = Order(a, Limits(64 * MIB), Limits(50 * MIB)), Limits(64 * MIB, None, 32 * MIB)
    state = State(tmp_path, "this boot")
    state.announce([(order, Limits(64 * MIB))])
    state.close()
    with closing(sqlite3.connect(tmp_path / "controller.db")) as old:
        for name in ("found", "wrote", "intended"):
            old.execute(f"ALTER TABLE journal DROP COLUMN {name}_swap")
    state = State(tmp_path, "this boot")
    entry = state.journal()[a]
    assert managers_limits(entry.found, entry.ours, found) == found, "what it never touched is its manager's"
    state.announce([(order, found)])
    assert state.journal()[a].found == found
    state.close()


events = st.one_of(
    st.tuples(st.just("settle"), st.integers(0, 60), st.sampled_from(["done", "killed before", "killed after"])),
    st.tuples(st.just("manager"), st.integers(20, 60), st.just("")),
)


@settings(max_examples=60)
@given(st.sampled_from(CgroupVersion), st.lists(events, min_size=1, max_size=8))
def test_whenever_we_die_the_managers_last_word_is_what_stays(
    version: CgroupVersion, story: list[tuple[str, int, str]]
) -> None:
    """I6 over any story of settlements, deaths around a write, and a manager who speaks in between."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        fake = FakeCgroups(Path(directory) / "memory", version)
        tenant = fake.make("/a")
        limits = limits_of(fake)
        fake.manager_sets("/a", 64 * MIB)
        word = 64 * MIB
        for turn, (kind, number, how) in enumerate(story, 1):
            if kind == "manager":
                # Some pages of its own, so that it never chooses by chance what we wrote: then nobody could tell.
                word = number * MIB + turn * PAGESIZE
                fake.manager_sets("/a", word)
                continue
            state = State(Path(directory))
            entry = state.journal().get(tenant)
            account = limits.read(tenant)
            assert account is not None
            found = managers_limits(entry.found, entry.ours, account.limits) if entry else account.limits
            assert found.max_bytes == word
            position = Position(tenant, account, found, None, number * MIB)
            for order in (*(plans := plan([position], version))[0], *plans[1]):
                state.announce([(order, found)])
                if how != "killed before":
                    limits.apply(order)
            state.close()
        state = State(Path(directory))
        assert restore(limits, state.forget, state.journal().values()) == []
        assert state.journal() == {}
        state.close()
        assert fake.limit("/a") == word
        if version is CgroupVersion.V2:
            assert fake.limit("/a", "memory.high") is None
        assert fake.kills("/a") == 0


def settle_once(limits: KernelLimits, directory: Path, tenant: CgroupRef, due_bytes: int) -> None:
    """What the controller does to one tenant, without its nursery: read, plan, announce, write, strike."""
    state = State(directory)
    entry = state.journal().get(tenant)
    account = limits.read(tenant)
    assert account is not None
    found = managers_limits(entry.found, entry.ours, account.limits) if entry else account.limits
    position = Position(tenant, account, found, None, due_bytes)
    for order in (*(plans := plan([position], limits.hierarchy.version))[0], *plans[1]):
        state.announce([(order, found)])
        limits.apply(order)
    account = limits.read(tenant)
    assert account is not None
    if account.limits == found:
        state.forget([tenant])
    state.close()


@pytest.mark.parametrize("version", CgroupVersion)
def test_killed_at_any_line_of_a_settlement_limits_go_back(version: CgroupVersion, in_memory: Path) -> None:
    """A real process, SIGKILL: lowered, lowered further, and on its way home."""
    ours = str(Path(controller.__file__).parent)

    def prepared(place: Path) -> tuple[FakeCgroups, CgroupRef]:
        fake = FakeCgroups(place / "memory", version)
        tenant = fake.make("/a")
        fake.manager_sets("/a", 64 * MIB)
        return fake, tenant

    for due in ((10,), (10, 30), (10, 0)):
        earlier, last = due[:-1], due[-1]

        def before(place: Path, earlier: tuple[int, ...] = earlier) -> tuple[FakeCgroups, CgroupRef]:
            fake, tenant = prepared(place)
            for number in earlier:
                settle_once(limits_of(fake), place, tenant, number * MIB)
            return fake, tenant

        dry = in_memory / f"{due}"
        fake, tenant = before(dry)
        lines = lines_of(partial(settle_once, limits_of(fake), dry, tenant, last * MIB), ours)
        assert fake.limit("/a") == (64 - last) * MIB
        for line in range(0, lines, 6):
            place = in_memory / f"{due}-{line}"
            fake, tenant = before(place)
            work = partial(settle_once, limits_of(fake), place, tenant, last * MIB)
            assert run_in_child(partial(killed_at_line, work, ours, line)) == -signal.SIGKILL
            state = State(place)
            assert restore(limits_of(fake), state.forget, state.journal().values()) == []
            assert state.journal() == {}
            state.close()
            assert fake.limit("/a") == 64 * MIB
            assert fake.kills("/a") == 0


def test_a_hierarchy_that_vanishes_takes_nobody_with_it(
    fake: FakeCgroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unmounted under our feet and mounted again: one warning, no line of the journal lost, limits go back."""
    state = State(tmp_path)
    slow, quick = ref(fake, "/slow"), ref(fake, "/quick")
    mount, away = fake.hierarchy.mount, tmp_path / "away"

    async def test(settler: Settler) -> None:
        orders = [lowering(cgroup, 64 * MIB, 50 * MIB) for cgroup in (slow, quick)]
        await settler.carry_out([], [order for order, _ in orders], dict.fromkeys((slow, quick), Limits(64 * MIB)))
        mount.rename(away)
        mount.mkdir()
        for _ in range(3):
            readings = await settler.read([slow, quick])
            assert (readings.gone, readings.unreadable) == (frozenset(), {slow, quick})
        with pytest.raises(HostFault, match="no memory cgroups are mounted there any more"):
            limits_of(fake).read(slow)
        assert restore(limits_of(fake), state.forget, state.journal().values()) == [caplog.records[0].message] * 2
        mount.rmdir()
        away.rename(mount)
        assert (await settler.read([slow, quick])).accounts.keys() == {slow, quick}
        assert await settler.restore_all() == []

    with_settler(fake, state, test)
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "no memory cgroups are mounted there any more"
    ]
    assert fake.limit("/slow") == fake.limit("/quick") == 64 * MIB
    state.close()


def test_a_read_only_hierarchy_is_told_once(
    fake: FakeCgroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path)
    slow, quick = ref(fake, "/slow"), ref(fake, "/quick")

    def refuse(path: str) -> None:
        raise OSError(EROFS, os.strerror(EROFS))

    fake.before_write = refuse

    async def test(settler: Settler) -> None:
        found = dict.fromkeys((slow, quick), Limits(64 * MIB))
        for _ in range(3):
            await settler.carry_out([], [lowering(cgroup, 64 * MIB, 50 * MIB)[0] for cgroup in (slow, quick)], found)

    with_settler(fake, state, test)
    assert [record.message.split(":")[0] for record in caplog.records] == ["the cgroup hierarchy is read-only"]
    assert fake.limit("/slow") == fake.limit("/quick") == 64 * MIB
    state.close()


def test_without_a_journal_no_limit_is_written(
    fake: FakeCgroups, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk below the journal: what could not be put back after our death is not lowered (I6)."""
    state = State(tmp_path)
    slow = ref(fake, "/slow")
    state._database.execute("PRAGMA max_page_count = 1")

    async def test(settler: Settler) -> None:
        many = [CgroupRef(f"/{'x' * 100}{number}", number) for number in range(2000)]
        orders = [lowering(cgroup, 64 * MIB, 50 * MIB)[0] for cgroup in (slow, *many)]
        for _ in range(2):
            await settler.carry_out([], orders, dict.fromkeys((slow, *many), Limits(64 * MIB)))
        assert settler.entries == {}

    with_settler(fake, state, test)
    assert len(caplog.records) == 1
    assert "no limit is written: " in caplog.text
    assert "full" in caplog.text
    assert fake.limit("/slow") == 64 * MIB
    state.close()


def test_debts_keep_their_age_over_restarts(tmp_path: Path) -> None:
    """Each process has a clock of its own that begins anywhere; the host's uptime goes on."""
    a, b = CgroupRef("/a", 1), CgroupRef("/b", 2)
    uptime = [100.0]
    state = State(tmp_path, "this boot")
    debts = KeptDebts(state, lambda: uptime[0])
    assert debts.since(7.0) == {}
    assert debts.are_kept({})
    assert not debts.are_kept({a: 7.0})
    debts.keep(7.0, {a: 7.0})
    assert debts.are_kept({a: 7.0})
    uptime[0] = 160.0
    debts.keep(67.0, {a: 7.0, b: 67.0})
    state.close()  # as the kernel would: nothing else is written at an end
    uptime[0] = 200.0
    state = State(tmp_path, "this boot")
    debts = KeptDebts(state, lambda: uptime[0])
    assert debts.since(5000.0) == {a: 4900.0, b: 4960.0}
    debts.keep(5001.0, {b: 4960.0})
    assert KeptDebts(state, lambda: uptime[0]).since(200.0) == {b: 160.0}
    state.close()
    rebooted = State(tmp_path, "next boot")
    assert rebooted.debts() == {}
    rebooted.close()


@pytest.mark.parametrize("version", CgroupVersion)
def test_a_group_is_populated_by_processes_in_it_or_below(version: CgroupVersion, tmp_path: Path) -> None:
    fake = FakeCgroups(tmp_path / "memory", version)
    fake.make("/a")
    fake.make("/a/b")
    assert not is_populated(fake.hierarchy, "/a")
    fake.enter("/a/b", 17)
    if version is CgroupVersion.V2:  # the kernel tells the ancestors
        fake.enter("/a", 17)
    assert is_populated(fake.hierarchy, "/a")
    assert is_populated(fake.hierarchy, "/a/b")
    assert not is_populated(fake.hierarchy, "/nowhere")


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("settle"), st.integers(0, 60), st.booleans()),
            st.tuples(st.just("guard"), st.just(0), st.booleans()),
            st.tuples(st.just("manager"), st.integers(20, 60), st.just(True)),
        ),
        max_size=12,
    )
)
def test_what_the_guard_writes_is_never_taken_for_the_managers_word(story: list[tuple[str, int, bool]]) -> None:
    """I6 with a guard that raises at any time, by its latest order or by the one before.

    One that was late is up to date at the next settlement, or was ended.
    """
    with TemporaryDirectory(dir="/dev/shm") as directory:
        fake = FakeCgroups(Path(directory) / "memory", CgroupVersion.V1)
        tenant, limits = fake.make("/a"), limits_of(fake)
        fake.manager_sets("/a", 64 * MIB)
        word, known, late = 64 * MIB, None, False
        state = State(Path(directory))

        async def settle(due_bytes: int, *, reaches_the_guard: bool) -> None:
            nonlocal known, late
            async with trio.open_nursery() as nursery:
                settler = Settler(limits, state, nursery, 1)
                account = limits.read(tenant)
                assert account is not None
                found = settler.found(tenant, account.limits)
                assert found.max_bytes == word
                position = Position(tenant, account, found, None, due_bytes, inherited_bytes=due_bytes // 2)
                planned = Planner(CgroupVersion.V1, Rules(pace=Pace(0, 1000.0))).plan(0.0, [position])
                watches = planned.watches
                if reaches_the_guard or known is None or late:
                    known = watches.get(tenant) if reaches_the_guard or known is None else None
                    late = False
                else:
                    late = True
                await settler.carry_out(planned.raising, planned.lowering, {tenant: found}, watches)

        for turn, (kind, number, whole) in enumerate(story, 1):
            if kind == "manager":
                word = number * MIB + turn * PAGESIZE
                fake.manager_sets("/a", word)
            elif kind == "settle":
                trio.run(partial(settle, number * MIB, reaches_the_guard=whole))
            elif known is not None and Limits(fake.limit("/a")) in known.lowered:
                fake.manager_sets("/a", known.raised.max_bytes)
        entries = state.journal().values()
        assert restore(limits, state.forget, entries) == []
        state.close()
        assert fake.limit("/a") == word
        assert fake.kills("/a") == 0
