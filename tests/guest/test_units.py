"""The units of deploy/systemd and a line of fstab under a real systemd: start, bill, settle, stop, and all is back.

They run in the guest only (tests/guest/check), whose systemd is there for them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharedfs.linux.cgroups import MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.mountinfo import mount_at
from tests.support.controller import bill_of, bills, run_sharedctl
from tests.support.mount import sharedfs
from tests.support.tenants import Agent, wait_until

pytestmark = pytest.mark.skipif(os.environ.get("SHAREDFS_GUEST") != "systemd", reason="for the guest with systemd")

REPOSITORY = Path(__file__).parents[2]
UNITS = Path("/etc/systemd/system")
MIB = 1 << 20
BUDGET = 256 * MIB


def systemctl(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode:
        log = subprocess.run(["journalctl", "-n", "40", "--no-pager"], capture_output=True, text=True, check=False)
        raise AssertionError(f"systemctl {' '.join(arguments)}: {done.stderr}{log.stdout}")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def hierarchy() -> MemoryHierarchy:
    """This host as after deploy/install, without what it fetches: the working tree's venv stands for the new one.

    Nothing of it may be below /tmp, which units with PrivateTmp= do not see.
    """
    venv = Path("/opt/sharedfs/venv")
    venv.mkdir(parents=True)
    subprocess.run(["mount", "--bind", sys.prefix, venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for package in ("sharedfs", "controller"):
        shutil.copytree(REPOSITORY / package, packages / package)
    for name in ("sharedfs", "sharedctl", "mount.fuse.sharedfs"):
        script = venv / "bin" / name
        script.write_text(script.read_text().replace(sys.prefix, str(venv)))
    Path("/sbin/mount.fuse.sharedfs").symlink_to(venv / "bin/mount.fuse.sharedfs")
    for unit in (REPOSITORY / "deploy/systemd").glob("*.service"):
        shutil.copy(unit, UNITS)
    systemctl("daemon-reload")
    return find_memory_hierarchy()


@contextmanager
def service_with(limit_bytes: int, name: str) -> Iterator[Agent]:
    """A tenant as systemd makes them: a transient service with MemoryMax=."""
    launch = ["systemd-run", "--quiet", "--pipe", "--collect", f"--unit={name}", "-p", f"MemoryMax={limit_bytes}"]
    agent = Agent(lambda command: launch + command)
    try:
        yield agent
    finally:
        agent.end()


def limit_of(hierarchy: MemoryHierarchy, unit: str) -> int:
    return int((hierarchy.directory(f"/system.slice/{unit}.service") / "memory.max").read_text())


def assert_nothing_failed() -> None:
    assert systemctl("list-units", "--failed", "--plain", "--no-legend") == ""


def test_a_pool_and_the_controller_as_units(hierarchy: MemoryHierarchy) -> None:
    place = Path("/mnt/unit")
    configuration = Path("/etc/sharedfs/pools/unit.conf")
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(f'MOUNTPOINT={place}\nSIZE=64M\nOPTIONS="--tenant unit --idle 300"\n')
    try:
        systemctl("start", "sharedfs@unit", "sharedfs-controller")
        assert mount_at(str(place)) is not None
        wait_until(lambda: run_sharedctl("bills").returncode == 0, "the controller answers", 60)
        with service_with(BUDGET, "b") as b:
            with service_with(BUDGET, "a") as a:
                a.do(f"open('{place}/shared', 'wb').write(b'x' * {16 * MIB})")
                b.do(f"f = open('{place}/shared', 'rb', 0)\nwhile f.read({MIB}): pass")
                for unit in "ab":
                    wait_until(
                        lambda unit=unit: limit_of(hierarchy, unit) == BUDGET - 8 * MIB, f"{unit} is settled", 60
                    )
                told = bills()
                for unit in "ab":
                    bill = bill_of(f"/system.slice/{unit}.service", told)
                    assert (bill["share_bytes"], bill["budget_bytes"]) == (8 * MIB, BUDGET)
                    statistics = hierarchy.directory(f"/system.slice/{unit}.service") / "memory.stat"
                    assert dict(line.split() for line in statistics.read_text().splitlines())["shmem"] == "0"
            wait_until(lambda: limit_of(hierarchy, "b") == BUDGET - 16 * MIB, "b pays for all when a has ended", 60)
            assert int(systemctl("show", "-P", "MemoryMax", "b")) == BUDGET - 16 * MIB, "systemd knows of it"
            systemctl("set-property", "--runtime", "b", f"MemoryMax={2 * BUDGET}")
            wait_until(lambda: limit_of(hierarchy, "b") == 2 * BUDGET - 16 * MIB, "a new budget is settled", 60)
            systemctl("daemon-reload")
            assert limit_of(hierarchy, "b") == 2 * BUDGET - 16 * MIB, "there is nothing for systemd to put right"
            systemctl("stop", "sharedfs-controller")
            assert limit_of(hierarchy, "b") == 2 * BUDGET
            assert int(systemctl("show", "-P", "MemoryMax", "b")) == 2 * BUDGET
            b.do("f.close()")
        systemctl("stop", "sharedfs@unit")
    finally:
        systemctl("stop", "sharedfs-controller", "sharedfs@unit", check=False)
        configuration.unlink()
    assert mount_at(str(place)) is None
    assert not list(Path("/run/sharedfs/pools").iterdir())
    assert_nothing_failed()


def test_a_mistake_in_a_configuration_is_told_and_is_no_loop_of_restarts(hierarchy: MemoryHierarchy) -> None:
    controller = Path("/etc/sharedfs/controller.toml")
    pool = Path("/etc/sharedfs/pools/wrong.conf")
    pool.parent.mkdir(parents=True, exist_ok=True)
    controller.write_text("interval = 1\n")
    pool.write_text("MOUNTPOINT=/mnt/wrong\nSIZE=64Q\n")
    units = ("sharedfs-controller", "sharedfs@wrong")
    try:
        for unit in units:
            failed = subprocess.run(["systemctl", "restart", unit], capture_output=True, timeout=120, check=False)
            assert failed.returncode != 0, f"systemctl restart {unit} reports success"
            assert systemctl("show", "-P", "ActiveState", unit) == "failed"
            assert systemctl("show", "-P", "NRestarts", unit) == "0"
            assert systemctl("show", "-P", "ExecMainStatus", unit) == "2"
    finally:
        controller.unlink()
        pool.unlink()
        systemctl("reset-failed", *units, check=False)
    assert_nothing_failed()


WORK = """
import time
class Work:
    rounds, errors, going = 0, [], True
    def run(self):
        while self.going:
            try:
                text = str(self.rounds).encode().ljust(64) * 512
                with open(place + '/new', 'wb', 0) as file: file.write(text)
                os.rename(place + '/new', place + '/f')
                with open(place + '/f', 'rb', 0) as file: assert file.read() == text
                shared[:8] = self.rounds.to_bytes(8, 'little')
                assert os.pread(kept, 8, 0) == shared[:8]
            except Exception as error:
                self.errors.append(repr(error))
            self.rounds += 1
"""


def is_user_mode_linux() -> bool:
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def test_a_reload_a_restart_and_a_killed_keeper_are_nothing_to_tenants(hierarchy: MemoryHierarchy) -> None:
    """systemd keeps the descriptors; a tenant makes, renames, reads and maps files all the while, and sees no error."""
    place, unit = Path("/mnt/kept"), "sharedfs@kept"
    configuration = Path("/etc/sharedfs/pools/kept.conf")
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(f'MOUNTPOINT={place}\nSIZE=64M\nOPTIONS="--tenant unit"\n')
    try:
        systemctl("start", unit, "sharedfs-controller")
        wait_until(lambda: run_sharedctl("bills").returncode == 0, "the controller answers", 60)
        with service_with(BUDGET, "a") as a:
            a.do(
                f"place = '{place}'; kept = os.open(place + '/gone', os.O_RDWR | os.O_CREAT)\n"
                f"os.ftruncate(kept, {8 * MIB}); os.unlink(place + '/gone'); shared = mmap.mmap(kept, {8 * MIB})"
            )
            a.do(WORK + "\nwork = Work(); thread = threading.Thread(target=work.run); thread.start()")

            def rounds() -> int:
                done = a.do("result = work.rounds")
                assert isinstance(done, int)
                return done

            def work_goes_on() -> None:
                before = rounds()
                wait_until(lambda: rounds() > before + 5, "the tenant works on", 60)
                assert a.do("result = work.errors") == []

            def settled() -> bool:
                line = bill_of("/system.slice/a.service", bills())
                return bool(line["limit_bytes"] == BUDGET - 8 * MIB - 32768)

            work_goes_on()
            mounted = mount_at(str(place))
            keeper = systemctl("show", "-P", "MainPID", unit)
            systemctl("reload", unit)
            work_goes_on()
            assert systemctl("show", "-P", "MainPID", unit) == keeper, "a reload is the daemon's only"
            systemctl("restart", unit)
            work_goes_on()
            after_restart = systemctl("show", "-P", "MainPID", unit)
            assert after_restart != keeper
            systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
            wait_until(lambda: systemctl("show", "-P", "MainPID", unit) not in ("0", after_restart), "another one", 60)
            if is_user_mode_linux():  # which fails the request that a killed process is reading (docs/reliability.md)
                lost = a.do("result = work.errors[:]; work.errors.clear()")
                assert lost in ([], ["OSError(5, 'Input/output error')"])
            work_goes_on()
            assert mount_at(str(place)) == mounted, "it was never unmounted"
            wait_until(settled, "the books are as before", 60)
            systemctl("restart", "sharedfs-controller")
            wait_until(lambda: run_sharedctl("bills").returncode == 0, "the controller answers", 60)
            assert bill_of("/system.slice/a.service", bills())["budget_bytes"] == BUDGET
            wait_until(settled, "the limit is the same after the controller's restart", 60)
            a.do("work.going = False; thread.join()")
            assert a.do("result = work.errors") == []
        systemctl("stop", unit)
    finally:
        systemctl("stop", "sharedfs-controller", unit, check=False)
        systemctl("reset-failed", check=False)
        configuration.unlink()
    assert mount_at(str(place)) is None
    assert not list(Path("/run/sharedfs/pools").iterdir())


def test_a_pool_as_a_line_of_fstab(hierarchy: MemoryHierarchy) -> None:
    place = Path("/mnt/fstab")
    fstab = Path("/etc/fstab")
    before = fstab.read_text()
    fstab.write_text(before + f"fstab {place} fuse.sharedfs size=32m,mode=0700,noexec,tenant=unit 0 0\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", "mnt-fstab.mount")
        mounted = mount_at(str(place))
        assert mounted is not None
        assert {"noexec", "nosuid", "nodev"} <= set(mounted.options)
        with service_with(BUDGET, "a") as a:
            a.do(f"open('{place}/f', 'wb').write(b'x' * {MIB})")
            assert '"resident_bytes": 1048576' in sharedfs("status", "--json").stdout
        systemctl("stop", "mnt-fstab.mount")
    finally:
        systemctl("stop", "mnt-fstab.mount", check=False)
        fstab.write_text(before)
        systemctl("daemon-reload")
    assert mount_at(str(place)) is None
    assert hierarchy.find("/sharedfs/fstab") is None
    assert_nothing_failed()
