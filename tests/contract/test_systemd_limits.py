"""Limits through the manager that owns them: systemd, the real one where it is process 1, and a fake that is alike."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import ECOMM
from pathlib import Path
from typing import Any

import pytest

from controller.limits.factory import SYSTEMD_BOOTED
from controller.limits.systemd import UNLIMITED, Systemd, SystemdWriter
from controller.limits.types import KernelLimits, Limits, Order
from controller.limits.v1 import LimitsV1
from controller.limits.v2 import LimitsV2
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, MemoryHierarchy, find_memory_hierarchy
from tests.contract.fake_cgroups import FakeCgroups
from tests.support.tenants import wait_until

MIB = 1 << 20


@dataclass
class FakeSystemd:
    """Keeps its own word for each unit, and writes it to the kernel."""

    cgroups: FakeCgroups
    units: dict[str, str] = field(default_factory=dict)
    properties: dict[tuple[str, str], int] = field(default_factory=dict)
    deaf: bool = False

    def unit_of(self, path: str) -> str | None:
        if self.deaf:
            raise OSError(ECOMM, os.strerror(ECOMM))
        return self.units.get(path)

    def set_limit(self, unit: str, name: str, limit_bytes: int) -> None:
        self.properties[unit, name] = limit_bytes
        path = next(path for path, named in self.units.items() if named == unit)
        v1 = self.cgroups.hierarchy.version is CgroupVersion.V1
        file = "memory.high" if name == "MemoryHigh" else "memory.limit_in_bytes" if v1 else "memory.max"
        self.cgroups.manager_sets(path, None if limit_bytes == UNLIMITED else limit_bytes, file)


class FakeHost:
    def __init__(self, root: Path, version: CgroupVersion) -> None:
        self.cgroups = FakeCgroups(root, version)
        self.manager = FakeSystemd(self.cgroups)
        self.hierarchy: MemoryHierarchy = self.cgroups.hierarchy
        self.write = self.cgroups.write

    def start(self, unit: str, limit: int) -> CgroupRef:
        made = self.cgroups.make(f"/slice/{unit}")
        self.manager.units[made.path] = unit
        self.manager.set_limit(unit, "MemoryMax", limit)
        return made

    def make_below(self, cgroup: CgroupRef) -> CgroupRef:
        return self.cgroups.make(f"{cgroup.path}/below")

    def administrator_sets(self, unit: str, limit: int) -> None:
        self.manager.set_limit(unit, "MemoryMax", limit)

    def told(self, unit: str) -> int:
        return self.manager.properties[unit, "MemoryMax"]


class RealHost:
    """Units of the systemd that runs here."""

    def __init__(self) -> None:
        self.manager = Systemd()
        self.hierarchy = find_memory_hierarchy()
        self.write = None
        self._started: list[str] = []

    def start(self, unit: str, limit: int) -> CgroupRef:
        name = f"sharedfs-test-{os.getpid()}-{unit}"
        options = ["-q", f"--unit={name}", "-p", f"MemoryMax={limit}", "-p", "Delegate=yes"]
        subprocess.run(["systemd-run", *options, "sleep", "infinity"], check=True, timeout=60)
        self._started.append(name)
        shown = ["systemctl", "show", "-P", "ControlGroup", name]
        path = subprocess.run(shown, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        return wait_until(lambda: self.hierarchy.find(path), "the unit runs", 20)

    def make_below(self, cgroup: CgroupRef) -> CgroupRef:
        self.hierarchy.directory(f"{cgroup.path}/below").mkdir()
        made = self.hierarchy.find(f"{cgroup.path}/below")
        assert made is not None
        return made

    def administrator_sets(self, unit: str, limit: int) -> None:
        name = f"sharedfs-test-{os.getpid()}-{unit}"
        command = ["systemctl", "set-property", "--runtime", name, f"MemoryMax={limit}"]
        subprocess.run(command, check=True, timeout=60)

    def told(self, unit: str) -> int:
        shown = ["systemctl", "show", "-P", "MemoryMax", f"sharedfs-test-{os.getpid()}-{unit}"]
        text = subprocess.run(shown, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        return UNLIMITED if text == "infinity" else int(text)

    def stop(self) -> None:
        for name in self._started:
            subprocess.run(["systemctl", "stop", name], check=False, timeout=60)
        self.manager.close()


@dataclass
class World:
    host: Any  # FakeHost | RealHost: alike by use, which is what this suite shows
    limits: KernelLimits

    def settle(self, cgroup: CgroupRef, limit: int | None) -> Limits | None:
        now = self.limits.limits(cgroup)
        assert now is not None
        outcome = self.limits.apply(Order(cgroup, now, Limits(limit)))
        assert outcome.refused is None
        return outcome.limits


def limits_of(host: FakeHost | RealHost) -> KernelLimits:
    writer = SystemdWriter(host.hierarchy, host.manager, *([host.write] if host.write else []))
    if host.hierarchy.version is CgroupVersion.V1:
        return LimitsV1(host.hierarchy, writer)
    return LimitsV2(host.hierarchy, writer)


@pytest.fixture(params=["fake v1", "fake v2", "real"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param != "real":
        fake = FakeHost(tmp_path / "memory", CgroupVersion(int(request.param[-1])))
        yield World(fake, limits_of(fake))
        return
    if not SYSTEMD_BOOTED.is_dir():
        pytest.skip("systemd is not process 1 here: this runs in the guest")
    real = RealHost()
    try:
        yield World(real, limits_of(real))
    finally:
        real.stop()


def test_a_limit_of_a_unit_is_systemds_word_too(world: World) -> None:
    unit = world.host.start("a.service", 64 * MIB)
    for limit in (48 * MIB, 56 * MIB, None, 64 * MIB):
        assert world.settle(unit, limit) == Limits(limit)
        assert world.host.told("a.service") == (UNLIMITED if limit is None else limit)


def test_what_the_administrator_sets_is_seen_as_a_new_limit(world: World) -> None:
    unit = world.host.start("a.service", 64 * MIB)
    assert world.settle(unit, 48 * MIB) == Limits(48 * MIB)
    world.host.administrator_sets("a.service", 80 * MIB)
    wait_until(lambda: world.limits.limits(unit) == Limits(80 * MIB), "it is in force", 20)


def test_what_the_guard_wrote_is_told_to_systemd(world: World) -> None:
    """Or systemd would write its older, lower word again at the unit's next change."""
    unit = world.host.start("a.service", 64 * MIB)
    assert world.settle(unit, 40 * MIB) == Limits(40 * MIB)
    v1 = world.host.hierarchy.version is CgroupVersion.V1
    file = world.host.hierarchy.directory(unit.path) / ("memory.limit_in_bytes" if v1 else "memory.max")
    file.write_text(f"{56 * MIB}\n")
    assert world.host.told("a.service") == 40 * MIB
    world.limits.confirm(unit)
    assert world.host.told("a.service") == 56 * MIB
    assert world.limits.limits(unit) == Limits(56 * MIB)


def test_what_is_below_a_unit_is_not_systemds(world: World) -> None:
    unit = world.host.start("a.service", 64 * MIB)
    below = world.host.make_below(unit)
    assert world.host.manager.unit_of(unit.path) is not None
    assert world.host.manager.unit_of(below.path) is None
    assert world.host.manager.unit_of("/no/such") is None


def test_without_systemd_the_kernel_is_written_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeHost(tmp_path / "memory", CgroupVersion.V2)
    unit = fake.start("a.service", 64 * MIB)
    fake.manager.deaf = True
    world = World(fake, limits_of(fake))
    for limit in (48 * MIB, 56 * MIB):
        assert world.settle(unit, limit) == Limits(limit)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "limits are written without systemd, which may write its own again"
    ]
    fake.manager.deaf = False
    assert world.settle(unit, 40 * MIB) == Limits(40 * MIB)
    assert fake.told("a.service") == 40 * MIB, "asked again when it answers"


def test_what_systemd_could_not_write_is_refused_like_the_kernel_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHost(tmp_path / "memory", CgroupVersion.V1)
    unit = fake.start("a.service", 64 * MIB)
    monkeypatch.setattr("controller.limits.systemd._CARRIED_OUT_SECONDS", 0.0)
    monkeypatch.setattr(fake.manager, "set_limit", lambda *_: None)
    limits = limits_of(fake)
    outcome = limits.apply(Order(unit, Limits(64 * MIB), Limits(48 * MIB)))
    assert outcome.limits == Limits(64 * MIB)
    assert outcome.refused is not None
