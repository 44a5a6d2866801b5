"""The writer of limits and its journal: nobody waits for a slow tenant, and every way to die is mended (I6)."""

import threading
from collections.abc import Awaitable, Callable
from mmap import PAGESIZE
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.billing.settlement import FLOOR_BYTES, Position, plan
from controller.limits.base import KernelLimits, Limits, Order, managers_limits
from controller.limits.restore import restore
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from controller.liveness import is_populated
from controller.settler import Settler
from controller.state import Budget, State
from sharedfs.errors import HostFault
from sharedfs.kernel.cgroups import CgroupRef, CgroupVersion
from tests.contract.fake_cgroups import FakeCgroups

MIB = 1 << 20


def limits_of(fake: FakeCgroups) -> KernelLimits:
    if fake.hierarchy.version is CgroupVersion.V1:
        return LimitsV1(fake.hierarchy, fake.write)
    return LimitsV2(fake.hierarchy, FLOOR_BYTES, fake.write)


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
    state.announce([(Order(a, Limits(64 * MIB), Limits(50 * MIB, 49 * MIB)), Limits(64 * MIB))])
    state.set_budget("/b", Budget(32 * MIB, report_only=True))
    state.set_budget("/c", Budget(32 * MIB))
    state.clear_budget("/c")
    state.close()
    again = State(tmp_path, "this boot")
    entry = again.journal()[a]
    assert entry.found == Limits(64 * MIB)
    assert entry.ours == (Limits(64 * MIB), Limits(50 * MIB, 49 * MIB))
    again.close()
    rebooted = State(tmp_path, "next boot")
    assert rebooted.journal() == {}
    assert rebooted.budgets() == {"/b": Budget(32 * MIB, report_only=True)}
    rebooted.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "controller.db").write_text("no database, whatever it is, in at least sixteen bytes")
    with pytest.raises(HostFault, match=r"other/controller\.db"):
        State(tmp_path / "other")


events = st.one_of(
    st.tuples(st.just("settle"), st.integers(0, 60), st.sampled_from(["done", "killed before", "killed after"])),
    st.tuples(st.just("manager"), st.integers(20, 60), st.just("")),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CgroupVersion), st.lists(events, min_size=1, max_size=8))
def test_whenever_we_die_the_managers_last_word_is_what_stays(
    version: CgroupVersion, story: list[tuple[str, int, str]]
) -> None:
    """I6 over any story of settlements, deaths around a write, and a manager who speaks in between."""
    with TemporaryDirectory() as directory:
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
        assert restore(limits, state, state.journal().values()) == []
        assert state.journal() == {}
        state.close()
        assert fake.limit("/a") == word
        if version is CgroupVersion.V2:
            assert fake.limit("/a", "memory.high") is None
        assert fake.kills("/a") == 0


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
