"""What `KernelLimits` promises, held to the kernel of this host and to the fakes that other tests stand on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EBUSY
from mmap import PAGESIZE
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from controller.limits.factory import kernel_limits
from controller.limits.types import KernelLimits, Limits, Order
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from controller.persistence.state import State
from controller.service.restore import restore
from controller.settlement.settle import SLACK_BYTES, Position
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, find_memory_hierarchy
from tests.contract.fake_cgroups import FakeCgroups
from tests.contract.real_cgroups import RealCgroups
from tests.support.settlement import plan

MIB = 1 << 20


@dataclass
class World:
    """A kernel, fake or real, and our limits on it."""

    cgroups: Any  # FakeCgroups | RealCgroups: alike by use, which is what this suite shows
    limits: KernelLimits
    version: CgroupVersion

    def order(self, cgroup: CgroupRef, max_bytes: int | None, high_bytes: int | None = None) -> Order:
        account = self.limits.read(cgroup)
        assert account is not None
        return Order(cgroup, account.limits, Limits(max_bytes, high_bytes))

    def settle(self, cgroup: CgroupRef, budget: int, due: int) -> Position:
        """One settlement of one tenant; its position afterwards."""
        account = self.limits.read(cgroup)
        assert account is not None
        position = Position(cgroup, account, Limits(budget), None, due)
        for order in (*(plans := plan([position], self.version))[0], *plans[1]):
            self.limits.apply(order)
        after = self.limits.read(cgroup)
        assert after is not None
        return Position(cgroup, after, Limits(budget), None, due)


@pytest.fixture(params=["fake v1", "fake v2", "real v1", "real v2"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind, _, number = request.param.partition(" ")
    version = CgroupVersion(int(number[1]))
    if kind == "fake":
        fake = FakeCgroups(tmp_path / "memory", version)
        if version is CgroupVersion.V1:
            yield World(fake, LimitsV1(fake.hierarchy, fake.write), version)
        else:
            yield World(fake, LimitsV2(fake.hierarchy, fake.write), version)
        return
    if os.geteuid() != 0:
        pytest.skip("making cgroups takes root")
    if find_memory_hierarchy().version is not version:
        pytest.skip(f"this host has its memory controller on cgroup v{find_memory_hierarchy().version}")
    # Page cache takes a disk; in the guest of tests/guest only the directory shared with the host is as good.
    disk = os.environ.get("SHAREDFS_GUEST_SHARE", tmp_path)
    with (
        TemporaryDirectory(dir=disk) as files,
        RealCgroups(version, Path(files)) as real,
        kernel_limits(real.hierarchy) as limits,
    ):
        yield World(real, limits, version)


def test_a_new_group_has_no_limit_and_uses_nothing(world: World) -> None:
    account = world.limits.read(world.cgroups.make("/a"))
    assert account is not None
    assert account.limits == Limits(None, None)
    assert account.limits.enforced_bytes is None
    assert account.usage_bytes == account.unreclaimable_bytes == 0


def test_the_managers_limit_is_read_in_whole_pages(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 64 * MIB + 123)
    account = world.limits.read(group)
    assert account is not None
    assert account.limits == Limits(64 * MIB)
    assert Path(world.limits.limit_file(group)).read_text().strip() == str(64 * MIB)


def test_an_order_is_carried_out_and_doing_it_again_is_harmless(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 64 * MIB)
    order = world.order(group, 40 * MIB)
    for _ in range(2):
        outcome = world.limits.apply(order)
        assert outcome.limits == Limits(40 * MIB)
        assert outcome.refused is None
    assert world.cgroups.limit(group.path) == 40 * MIB


def test_a_limit_goes_back_to_none(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 64 * MIB)
    assert world.limits.apply(world.order(group, None)).limits == Limits(None, None)
    assert world.cgroups.limit(group.path) is None


def test_an_order_yields_to_a_manager_who_was_faster(world: World) -> None:
    group = world.cgroups.make("/a")
    order = world.order(group, 40 * MIB)
    world.cgroups.manager_sets(group.path, 80 * MIB)
    assert world.limits.apply(order).limits == Limits(80 * MIB)
    assert world.cgroups.limit(group.path) == 80 * MIB


def test_a_removed_group_is_no_error(world: World) -> None:
    group = world.cgroups.make("/a")
    order = world.order(group, 40 * MIB)
    world.cgroups.remove(group.path)
    assert world.limits.read(group) is None
    assert world.limits.apply(order).limits is None
    assert world.limits.apply(order).refused is None


def test_a_later_group_of_the_same_name_is_left_alone(world: World) -> None:
    group = world.cgroups.make("/a")
    order = world.order(group, 40 * MIB)
    world.cgroups.remove(group.path)
    later = world.cgroups.make("/a")
    # A directory of a disk filesystem may get the old number at once; a cgroup never does while we look.
    stale = CgroupRef(group.path, later.inode + 1) if later == group else group
    assert world.limits.read(stale) is None
    assert world.limits.apply(Order(stale, order.now, order.intended)).limits is None
    assert world.cgroups.limit(later.path) is None


def test_a_limit_below_what_a_tenant_cannot_give_up_does_not_kill(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 128 * MIB)
    world.cgroups.occupy(group.path, 32 * MIB)
    outcome = world.limits.apply(world.order(group, 8 * MIB))
    assert outcome.limits == Limits(128 * MIB)
    assert world.cgroups.kills(group.path) == 0
    if world.version is CgroupVersion.V1:  # v2 has nothing to refuse: it was not asked
        assert outcome.refused is not None
        assert "uses more" in outcome.refused


def test_what_a_tenant_cannot_bear_is_debt_and_never_kills(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 64 * MIB)
    world.cgroups.occupy(group.path, 32 * MIB)
    position = world.settle(group, 64 * MIB, 60 * MIB)
    limit = position.account.limits.max_bytes
    assert limit is not None
    assert position.account.unreclaimable_bytes <= limit < 64 * MIB
    assert position.debt_bytes(position.account.limits) == limit - 4 * MIB > 0
    assert world.cgroups.kills(group.path) == 0


def test_page_cache_makes_room_for_the_limit(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.manager_sets(group.path, 64 * MIB)
    world.cgroups.occupy(group.path, 4 * MIB, 48 * MIB)
    for _ in range(3):  # v2 goes by memory.high first, and memory.max follows usage down
        position = world.settle(group, 64 * MIB, 24 * MIB)
    assert position.account.limits.max_bytes == 40 * MIB
    assert position.account.usage_bytes <= 40 * MIB
    assert position.debt_bytes(position.account.limits) == 0
    assert world.cgroups.kills(group.path) == 0


def test_the_limit_of_swap_is_settled_and_put_back(world: World, tmp_path: Path) -> None:
    group = world.cgroups.make("/a")
    if world.version is CgroupVersion.V1:
        account = world.limits.read(group)
        assert account is not None
        assert account.limits.swap_bytes is None
        return
    world.cgroups.manager_sets(group.path, 64 * MIB)
    world.cgroups.manager_sets(group.path, 32 * MIB, "memory.swap.max")
    account = world.limits.read(group)
    assert account is not None
    assert account.limits == Limits(64 * MIB, None, 32 * MIB)
    assert account.swap_usage_bytes == 0
    position = Position(group, account, account.limits, None, 10 * MIB, swap_due_bytes=12 * MIB)
    (), (order,) = plan([position], world.version)
    state = State(tmp_path / "state")
    state.announce([(order, account.limits)])
    assert world.limits.apply(order).limits == Limits(54 * MIB, order.intended.high_bytes, 20 * MIB)
    assert world.cgroups.limit(group.path, "memory.swap.max") == 20 * MIB
    assert restore(world.limits, state.forget, state.journal().values()) == []
    assert world.cgroups.limit(group.path, "memory.swap.max") == 32 * MIB
    assert world.cgroups.limit(group.path) == 64 * MIB
    state.close()


def test_page_cache_is_not_counted_as_memory_that_must_stay(world: World) -> None:
    group = world.cgroups.make("/a")
    world.cgroups.occupy(group.path, 4 * MIB, 24 * MIB)
    account = world.limits.read(group)
    assert account is not None
    assert account.usage_bytes >= 28 * MIB
    assert 4 * MIB <= account.unreclaimable_bytes <= account.usage_bytes - 24 * MIB + SLACK_BYTES


def test_restoring_puts_back_what_was_found_but_not_over_the_managers_new_word(world: World, tmp_path: Path) -> None:
    kept, changed, gone = (world.cgroups.make(name) for name in ("/kept", "/changed", "/gone"))
    state = State(tmp_path / "state")
    for group in (kept, changed, gone):
        world.cgroups.manager_sets(group.path, 64 * MIB)
        order = world.order(group, 40 * MIB)
        state.announce([(order, Limits(64 * MIB))])
        world.limits.apply(order)
    world.cgroups.manager_sets(changed.path, 48 * MIB)
    world.cgroups.remove(gone.path)
    assert restore(world.limits, state.forget, state.journal().values()) == []
    assert world.cgroups.limit(kept.path) == 64 * MIB
    assert world.cgroups.limit(changed.path) == 48 * MIB
    assert state.journal() == {}
    state.close()


def test_the_fake_v1_refuses_and_the_fake_v2_kills_a_naive_settlement(tmp_path: Path) -> None:
    """The fakes have teeth: what `KernelLimits` avoids does happen to one who just writes the target."""
    old = FakeCgroups(tmp_path / "v1", CgroupVersion.V1)
    old.make("/a")
    old.occupy("/a", 32 * MIB)
    with pytest.raises(OSError, match="busy") as refusal:
        old.manager_sets("/a", 8 * MIB)
    assert refusal.value.errno == EBUSY
    new = FakeCgroups(tmp_path / "v2", CgroupVersion.V2)
    new.make("/a")
    new.occupy("/a", 32 * MIB)
    new.manager_sets("/a", 8 * MIB, "memory.high")
    assert new.kills("/a") == 0
    new.manager_sets("/a", 8 * MIB)
    assert new.kills("/a") == 1


def test_v2_growth_between_plan_and_write_is_seen(tmp_path: Path) -> None:
    """memory.max is written on a reading of usage that is as old as the write before it."""
    fake = FakeCgroups(tmp_path / "v2", CgroupVersion.V2)
    group = fake.make("/a")
    fake.manager_sets("/a", 64 * MIB)
    limits = LimitsV2(fake.hierarchy, fake.write)

    def grow(path: str) -> None:
        fake.occupy(path, 30 * MIB)

    fake.before_write = grow
    order = Order(group, Limits(64 * MIB), Limits(16 * MIB, 16 * MIB))
    assert limits.apply(order).limits == Limits(64 * MIB, 16 * MIB)
    assert fake.kills("/a") == 0


def test_files_that_make_no_sense_are_the_hosts_fault_and_named(tmp_path: Path) -> None:
    fake = FakeCgroups(tmp_path / "v1", CgroupVersion.V1)
    group = fake.make("/a")
    limits = LimitsV1(fake.hierarchy, fake.write)
    for name in ("memory.usage_in_bytes", "memory.stat"):
        file = fake.hierarchy.directory("/a") / name
        before = file.read_text()
        file.write_text("a lot\n")
        with pytest.raises(HostFault, match=name):
            limits.read(group)
        file.write_text(before)


def test_pages_are_what_the_kernel_rounds_to() -> None:
    assert os.sysconf("SC_PAGE_SIZE") == PAGESIZE
