"""`sharedctl` and the controller it starts, as processes, on this host's real cgroups and a fake pool's feed."""

import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.persistence.state_schema import VERSION
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion, find_memory_hierarchy
from tests.contract.fake_feed import FakePool
from tests.contract.real_cgroups import RealCgroups

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[3]


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "the controller takes root"
    try:
        version = find_memory_hierarchy().version
    except HostFault as fault:
        return str(fault)
    return None if version is CgroupVersion.V1 else "written for the limits of cgroup v1"


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def wait_until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@dataclass
class Host:
    run: Path
    state: Path
    cgroups: RealCgroups
    pool: FakePool
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        places = {"SHAREDFS_RUN_DIR": str(self.run), "SHAREDFS_STATE_DIR": str(self.state)}
        places["SHAREDFS_HOST_LOCK"] = str(self.run.parent / "host.lock")
        return {**os.environ, **places, "PYTHONPATH": str(REPOSITORY)}

    def tenant(self, name: str, limit: int | None = None) -> CgroupRef:
        cgroup = self.cgroups.make(f"/{name}")
        if limit is not None:
            self.cgroups.manager_sets(cgroup.path, limit)
        return cgroup

    def limit(self, tenant: CgroupRef) -> int | None:
        return self.cgroups.limit(tenant.path)

    def ctl(self, *arguments: str, code: int = 0) -> str:
        """What it prints; with a `code`, its one line of complaint."""
        done = subprocess.run(
            [sys.executable, "-m", "controller.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code, done.stderr
        if code == 0:
            return done.stdout
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def ask(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ctl(*arguments, "--json"))
        return answer

    def bills(self) -> dict[str, dict[str, Any]]:
        answer = self.ask("bills")
        assert answer["pool_resident_bytes"] == answer["unclaimed_bytes"] + sum(
            line["share_bytes"] for line in answer["tenants"]
        )
        return {line["tenant"]: line for line in answer["tenants"]}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        controller = subprocess.Popen(
            [sys.executable, "-m", "controller.cli.main", "run", *arguments],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(controller)
        wait_until(self.serves)
        return controller

    def serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.run / "controller.sock")) == 0

    def stop(self, controller: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> str:
        controller.send_signal(how)
        _, said = controller.communicate(timeout=20)
        assert controller.returncode == (-how if how is signal.SIGKILL else 0), said
        return said


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    run = tmp_path / "run"
    with RealCgroups(CgroupVersion.V1, tmp_path) as cgroups, FakePool(run) as pool:
        made = Host(run, tmp_path / "state", cgroups, pool)
        try:
            yield made
        finally:
            for controller in made.started:
                controller.kill()
                controller.communicate()


def test_shares_come_off_limits_and_an_exit_makes_the_others_fall(host: Host) -> None:
    a, b, free = host.tenant("a", 64 * MIB), host.tenant("b", 80 * MIB), host.tenant("free")
    host.pool.files = {"model.bin": [(20 * MIB, (a, b)), (3 * MIB, ())], "own": [(4 * MIB, (a,)), (MIB + 1, (free,))]}
    controller = host.start()
    bills = host.bills()
    assert bills[a.path] == {
        "tenant": a.path,
        "name": None,
        "state": "empty",
        "share_bytes": 14 * MIB,
        "used_bytes": 24 * MIB,
        "budget_bytes": 64 * MIB,
        "limit_bytes": 50 * MIB,
        "bound_by": a.path,
        "report_only": False,
        "kernel_usage_bytes": 0,
        "over_bytes": 0,
        "debt_bytes": 0,
        "debt_age_seconds": None,
        "borne_bytes": 0,
        "inherited_bytes": 0,
        "swapped_bytes": 0,
        "detached_bytes": 0,
        "inode_bytes": 0,
        "swap_budget_bytes": None,
        "swap_limit_bytes": None,
        "swap_debt_bytes": 0,
    }
    assert (host.limit(a), host.limit(b), host.limit(free)) == (50 * MIB, 70 * MIB, None)
    assert (bills[free.path]["budget_bytes"], bills[free.path]["limit_bytes"]) == (None, None)

    forecast = host.ask("what-if", "exit", a.path)
    assert forecast["freed_bytes"] == 4 * MIB
    host.cgroups.remove(a.path)  # the pool has not noticed yet; we have
    bills = host.bills()
    assert a.path not in bills
    assert host.ask("bills")["unclaimed_bytes"] == 7 * MIB
    predicted = next(line for line in forecast["tenants"] if line["tenant"] == b.path)
    assert (predicted["share_before_bytes"], predicted["share_after_bytes"]) == (10 * MIB, 20 * MIB)
    assert (predicted["limit_before_bytes"], predicted["limit_after_bytes"]) == (70 * MIB, 60 * MIB)
    assert bills[b.path]["limit_bytes"] == host.limit(b) == 60 * MIB

    host.stop(controller)
    assert host.limit(b) == 80 * MIB
    assert not (host.run / "controller.sock").exists()


def test_debt_is_shown_and_nobody_is_killed(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.cgroups.occupy(a.path, 32 * MIB)
    host.pool.files = {"f": [(60 * MIB, (a,))]}
    controller = host.start()
    line = host.bills()[a.path]
    assert line["state"] == "live"
    assert line["debt_bytes"] == line["limit_bytes"] - 4 * MIB > 0
    assert line["kernel_usage_bytes"] < line["limit_bytes"] < 64 * MIB
    assert host.cgroups.kills(a.path) == 0
    host.pool.files = {}
    host.pool.idle = {a}
    wait_until(lambda: host.limit(a) == 64 * MIB, 2)
    host.stop(controller)


def test_foreign_bytes_are_shown_and_not_taken_off_twice(host: Host) -> None:
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 64 * MIB)
    host.pool.files = {"sparse": [(8 * MIB, (a, b), a)]}
    host.start()
    assert host.ask("bills")["foreign_bytes"] == 8 * MIB
    assert (host.limit(a), host.limit(b)) == (64 * MIB, 60 * MIB)


def test_a_manager_who_changes_a_limit_sets_a_new_budget(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.cgroups.manager_sets(a.path, 40 * MIB)
    line = host.bills()[a.path]
    assert (line["budget_bytes"], line["limit_bytes"]) == (40 * MIB, 30 * MIB)
    host.cgroups.manager_sets(a.path, None)
    line = host.bills()[a.path]
    assert (line["budget_bytes"], line["limit_bytes"]) == (None, None)
    host.stop(controller)
    assert host.limit(a) is None


def test_an_operators_budget_is_kept_over_restarts_and_cleared(host: Host) -> None:
    a, managed = host.tenant("a"), host.tenant("managed", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a, managed))]}
    controller = host.start()
    said = host.ctl("budget", managed.path, "32M", code=2)
    assert f"{64 * MIB} bytes in {host.cgroups.hierarchy.directory(managed.path)}/memory.limit_in_bytes" in said
    host.ctl("budget", str(host.cgroups.hierarchy.directory(a.path)), "32M")
    assert host.limit(a) == 27 * MIB
    host.stop(controller)
    assert host.limit(a) is None
    controller = host.start()
    assert host.bills()[a.path]["budget_bytes"] == 32 * MIB
    assert host.limit(a) == 27 * MIB
    assert "no budget" in host.ctl("budget", a.path.lstrip("/"), "clear")
    assert host.limit(a) is None
    later = host.tenant("later")
    assert "when it uses a pool" in host.ctl("budget", later.path, "32M")
    assert host.limit(later) is None
    host.pool.idle = {later}
    wait_until(lambda: host.limit(later) == 32 * MIB, 2)
    assert "no memory cgroup" in host.ctl("budget", "/sharedfs-ctl-test-nobody", "32M", code=2)
    assert "cannot be limited" in host.ctl("budget", "/", "32M", code=2)
    assert f"`sharedctl budget {a.path} clear` takes" in host.ctl("budget", a.path, "none", code=2)
    assert "greater than" in host.ctl("budget", a.path, "1", code=2)
    host.stop(controller)
    assert host.limit(later) is None


def test_a_killed_controller_leaves_a_journal_from_which_limits_go_back(host: Host) -> None:
    """I6, whether the next controller does it or `sharedctl restore`."""
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 64 * MIB)
    host.pool.files = {"f": [(20 * MIB, (a, b))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == host.limit(b) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    assert host.limit(a) == 54 * MIB
    host.cgroups.manager_sets(b.path, 50 * MIB)  # while nobody looks
    controller = host.start()
    bills = host.bills()
    assert bills[a.path]["budget_bytes"] == 64 * MIB
    assert bills[b.path]["budget_bytes"] == 50 * MIB
    host.stop(controller)
    assert (host.limit(a), host.limit(b)) == (64 * MIB, 50 * MIB)

    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    assert "already runs" in host.ctl("restore", code=2)
    host.stop(controller, signal.SIGKILL)
    assert "put back: 2" in host.ctl("restore")
    assert (host.limit(a), host.limit(b)) == (64 * MIB, 50 * MIB)
    assert "put back: 0" in host.ctl("restore")


def test_killed_at_random_the_controller_comes_back_knowing_everything(host: Host) -> None:
    """Budgets, limits and what was there before, debts with their age, and the history, over many lives."""
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 64 * MIB)
    operators = host.tenant("operators")
    host.cgroups.occupy(b.path, 32 * MIB)
    host.pool.idle = {operators}
    generator = random.Random(3)
    paid = age = 0
    for life in range(3):
        host.pool.files = {"f": [((10 + life) * MIB, (a,)), (60 * MIB, (b,))]}
        controller = host.start()
        if not life:
            host.ctl("budget", operators.path, "32M")
        wait_until(lambda life=life: host.limit(a) == (54 - life) * MIB)
        bills = host.bills()
        assert [bills[tenant.path]["budget_bytes"] for tenant in (a, b, operators)] == [64 * MIB, 64 * MIB, 32 * MIB]
        assert bills[b.path]["debt_bytes"] > 0
        assert bills[b.path]["debt_age_seconds"] >= age
        age = bills[b.path]["debt_age_seconds"]
        (line,) = host.ask("history", b.path, "--since", "1h")["lines"]
        assert line["share_byte_seconds"] > paid
        assert line["share_byte_seconds"] == pytest.approx(60 * MIB * line["covered_seconds"], abs=100)
        paid = line["share_byte_seconds"]
        host.pool.files = {"f": [((20 + life) * MIB, (a,)), (60 * MIB, (b,))]}
        time.sleep(generator.random() * 0.6)  # any moment of settlement will do: that is the point
        host.stop(controller, signal.SIGKILL)
    assert "put back: 3" in host.ctl("restore")
    assert [host.limit(tenant) for tenant in (a, b, operators)] == [64 * MIB, 64 * MIB, None]
    controller = host.start()
    assert age >= 1
    assert host.bills()[b.path]["debt_age_seconds"] >= age
    table = host.ctl("history")
    assert "(unclaimed)" in table
    assert "GIB HOURS PAID" in table
    assert "not a duration" in host.ctl("history", "--since", "yesterday", code=2)
    assert "has no tenant /nobody" in host.ctl("history", "/nobody", code=2)
    host.stop(controller)


def test_a_dead_pool_is_dropped_and_a_later_one_found(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    with FakePool(host.run, "later", "/mnt/later") as later:
        later.files = {"g": [(6 * MIB, (a,))]}
        wait_until(lambda: host.limit(a) == 48 * MIB, 2)
        assert host.bills()[a.path]["share_bytes"] == 16 * MIB
        host.pool.die()
        wait_until(lambda: host.limit(a) == 58 * MIB, 2)
    wait_until(lambda: host.limit(a) == 64 * MIB, 2)
    assert host.bills() == {}
    assert "pool later: dropped" in host.stop(controller)


def test_a_pool_that_answers_late_stays_on_the_bill_and_its_limits_stay(host: Host) -> None:
    """The control is the pool that is gone."""
    config = host.run / "impatient.toml"
    config.write_text("pool_patience_seconds = 0.5\n")
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start("--config", str(config))
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.pool.delay_seconds = 60
    wait_until(lambda: host.ask("status")["pools"][0]["age_seconds"] > 3)
    assert host.limit(a) == 54 * MIB
    assert host.bills()[a.path]["share_bytes"] == 10 * MIB
    assert "pool demo answers late: its part of the bill is" in host.ctl("bills")
    assert "pool demo does not answer: no answer within 10 s" in host.ctl("explain", a.path, code=1)
    host.pool.die()
    wait_until(lambda: host.limit(a) == 64 * MIB)
    said = host.stop(controller)
    assert said.count("pool demo: late: its books of") == 1
    assert "pool demo: dropped" in said


def test_limits_of_a_pool_that_has_not_answered_a_new_controller_yet_stay(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    host.pool.delay_seconds = 60
    controller = host.start()
    settlements = host.ask("status")["settlements"]
    wait_until(lambda: host.ask("status")["settlements"] > settlements + 2)
    assert host.limit(a) == 54 * MIB
    assert "pool demo has not answered yet" in host.ctl("bills")
    host.stop(controller)
    assert host.limit(a) == 64 * MIB


def test_explain_lists_the_files_with_the_largest_shares_and_counts_the_others(host: Host) -> None:
    a, b = host.tenant("a"), host.tenant("b")
    host.pool.files = {f"f{number}": [(4096 * number, (a, b))] for number in range(1, 8)}
    host.pool.files_of_a_page = 2
    host.start()
    told = host.ask("explain", a.path, "--files", "3")
    assert [file["path"] for file in told["files"]] == ["f7", "f6", "f5"]
    assert (told["others"], told["others_share_bytes"]) == (4, (1 + 2 + 3 + 4) * 2048)
    assert told["share_bytes"] == sum(range(1, 8)) * 2048
    assert "and 4 files more, with 20.0K of the share (--files)" in host.ctl("explain", a.path, "--files", "3")


def test_explain_and_users_agree_with_the_bill(host: Host) -> None:
    a, b, c = host.tenant("a"), host.tenant("b"), host.tenant("c")
    host.pool.files = {
        "one": [(4097, (a, b, c)), (5000, (a,)), (11, ())],
        "two": [(8191, (a, b, c)), (3, (b, c))],
    }
    host.start()
    bills = host.bills()
    for tenant in (a, b, c):
        told = host.ask("explain", tenant.path)
        assert told["share_bytes"] == bills[tenant.path]["share_bytes"]
        assert told["used_bytes"] == bills[tenant.path]["used_bytes"]
        for part in ("files", "classes"):
            assert sum(line["share_bytes"] for line in told[part]) == told["share_bytes"]
        assert sum(line["used_bytes"] for line in told["files"]) == told["used_bytes"]
        assert all(tenant.path in line["payers"] for line in told["classes"])
    file = host.ask("users", "/mnt/demo/../demo/one")
    assert file["unclaimed_bytes"] == 11
    assert file["resident_bytes"] == 11 + sum(line["share_bytes"] for line in file["tenants"])
    assert file["tenants"][0] == {"tenant": a.path, "used_bytes": 9097, "share_bytes": 1366 + 5000}
    for words in (["bills"], ["explain", a.path], ["users", "/mnt/demo/one"], ["what-if", "exit", a.path]):
        table = host.ctl(*words)
        assert a.path in table
        assert "\x1b" not in table


def test_what_the_caller_gets_wrong_is_one_line_and_exit_code_2(host: Host, tmp_path: Path) -> None:
    assert "start it with `sharedctl run`" in host.ctl("bills", code=2)
    config = tmp_path / "controller.toml"
    for text, complaint in (
        ("intervall_seconds = 1", "unknown key intervall_seconds"),
        ("interval_seconds = 'soon'", "interval_seconds: "),
        ("interval_seconds", "not TOML"),
    ):
        config.write_text(text)
        assert complaint in host.ctl("run", "--config", str(config), code=2)
    assert "No such file" in host.ctl("run", "--config", "/nonexistent", code=2)
    (host.run / "controller.sock").write_text("mine")
    assert "is no socket" in host.ctl("run", code=2)
    assert (host.run / "controller.sock").read_text() == "mine"
    (host.run / "controller.sock").unlink()
    with closing(socket.socket(socket.AF_UNIX)) as left:  # a socket that was left there is replaced
        left.bind(str(host.run / "controller.sock"))
    host.start("--config", str(REPOSITORY / "deploy" / "controller.toml"))
    assert stat.S_IMODE((host.run / "controller.sock").stat().st_mode) == 0o600
    assert "already runs" in host.ctl("run", code=2)
    assert "`sharedctl bills`" in host.ctl("explain", "/nobody", code=2)
    assert "`sharedctl bills`" in host.ctl("what-if", "exit", "/nobody", code=2)
    assert "/mnt/demo" in host.ctl("users", "/etc/passwd", code=2)
    assert "no such file" in host.ctl("users", "/mnt/demo/missing", code=2)
    assert "Missing" in host.ctl("explain", code=2)
    assert "No such option" in host.ctl("bills", "--yaml", code=2)
    assert "No such command" in host.ctl("bill", code=2)
    assert "Missing command" in host.ctl(code=2)
    for words in (
        [],
        ["run"],
        ["budget"],
        ["bills"],
        ["explain"],
        ["users"],
        ["what-if", "exit"],
        ["restore"],
        ["plan"],
    ):
        assert "Example: sharedctl" in host.ctl(*words, "--help")


def test_books_that_do_not_add_up_stop_the_service_and_limits_go_back(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.pool.misreport = 1
    _, said = controller.communicate(timeout=20)
    assert controller.returncode == 1
    assert "broken invariant: I1: pool demo" in said.splitlines()[-1]
    assert host.limit(a) == 64 * MIB


def test_billing_without_settling_writes_nothing(host: Host, tmp_path: Path) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    config = tmp_path / "controller.toml"
    config.write_text("settle = false\n")
    host.start("--config", str(config))
    line = host.bills()[a.path]
    assert (line["share_bytes"], line["limit_bytes"], line["debt_bytes"]) == (10 * MIB, 64 * MIB, 10 * MIB)


def test_a_dry_run_says_what_it_would_write_and_writes_nothing(host: Host) -> None:
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 80 * MIB)
    host.pool.files = {"f": [(20 * MIB, (a, b))]}
    controller = host.start("--dry-run")
    wait_until(lambda: host.ask("plan")["writes"])
    plan = host.ask("plan")
    directory = host.cgroups.hierarchy.directory(a.path)
    assert plan["dry_run"]
    assert plan["writes"][0] == {
        "cgroup": a.path,
        "file": str(directory / "memory.limit_in_bytes"),
        "now": str(64 * MIB),
        "text": str(54 * MIB),
        "state": "would",
    }
    assert str(54 * MIB) in host.ctl("plan")
    assert host.bills()[a.path]["limit_bytes"] == 64 * MIB
    said = host.stop(controller)
    assert said.count(f"would write {54 * MIB} to {directory}/memory.limit_in_bytes") == 1
    assert (host.limit(a), host.limit(b)) == (64 * MIB, 80 * MIB)
    assert "put back: 0" in host.ctl("restore")


def test_a_budget_for_reports_tells_what_is_over_and_limits_nothing(host: Host) -> None:
    a, managed = host.tenant("a"), host.tenant("managed", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))], "g": [(10 * MIB, (managed,))]}
    controller = host.start()
    assert "for reports only" in host.ctl("budget", a.path, "8M", "--report-only")
    host.ctl("budget", managed.path, "32M", "--report-only")
    bills = host.bills()
    assert (bills[a.path]["budget_bytes"], bills[a.path]["over_bytes"], bills[a.path]["limit_bytes"]) == (
        8 * MIB,
        2 * MIB,
        None,
    )
    assert (bills[managed.path]["budget_bytes"], bills[managed.path]["debt_bytes"]) == (32 * MIB, 0)
    assert (host.limit(a), host.limit(managed)) == (None, 64 * MIB)
    assert "M (report)" in host.ctl("bills")
    host.ctl("budget", managed.path, "clear")
    assert host.limit(managed) == 54 * MIB
    host.stop(controller)


def test_what_is_above_a_tenant_has_to_bear_its_share_too(host: Host) -> None:
    pod = host.tenant("pod", 64 * MIB)
    a, b = host.tenant("pod/a"), host.tenant("pod/b", 48 * MIB)
    outside = host.tenant("outside", 64 * MIB)
    host.pool.files = {"f": [(30 * MIB, (a, b, outside))]}
    controller = host.start()
    bills = host.bills()
    assert (host.limit(pod), host.limit(a), host.limit(b), host.limit(outside)) == (
        44 * MIB,
        None,
        38 * MIB,
        54 * MIB,
    )
    assert (bills[a.path]["budget_bytes"], bills[a.path]["limit_bytes"], bills[a.path]["bound_by"]) == (
        64 * MIB,
        44 * MIB,
        pod.path,
    )
    assert (bills[b.path]["budget_bytes"], bills[b.path]["limit_bytes"], bills[b.path]["bound_by"]) == (
        48 * MIB,
        38 * MIB,
        b.path,
    )
    (group,) = host.ask("bills")["groups"]
    assert group["cgroup"] == pod.path
    assert (group["due_bytes"], group["budget_bytes"], group["limit_bytes"]) == (20 * MIB, 64 * MIB, 44 * MIB)
    assert host.ask("plan")["writes"] == [], "it is at rest"
    stat = host.cgroups.hierarchy.directory(a.path) / "memory.stat"
    enforced = dict(line.split() for line in stat.read_text().splitlines())["hierarchical_memory_limit"]
    assert int(enforced) == bills[a.path]["limit_bytes"], "the kernel says the same"
    assert pod.path in host.ctl("bills")
    host.stop(controller)
    assert (host.limit(pod), host.limit(b)) == (64 * MIB, 48 * MIB)


def test_memory_and_swap_together_stay_at_least_the_memory_limit(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    both = "memory.memsw.limit_in_bytes"
    if not (host.cgroups.hierarchy.directory(a.path) / both).exists():
        pytest.skip("this kernel does not limit swap")
    host.cgroups.manager_sets(a.path, 64 * MIB, both)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    assert host.bills()[a.path]["limit_bytes"] == 54 * MIB
    assert host.cgroups.limit(a.path, both) == 64 * MIB
    host.cgroups.manager_sets(a.path, 60 * MIB, both)
    assert host.bills()[a.path]["budget_bytes"] == 60 * MIB
    wait_until(lambda: host.limit(a) == 50 * MIB)
    said = host.stop(controller)
    assert "cannot write" not in said
    assert (host.limit(a), host.cgroups.limit(a.path, both)) == (60 * MIB, 60 * MIB)


def test_writes_are_counted_and_a_share_that_trembles_moves_no_limit(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    transport = httpx.HTTPTransport(uds=str(host.run / "controller.sock"))
    with httpx.Client(transport=transport, base_url="http://controller", timeout=20) as client:

        def settle(size_bytes: int) -> None:
            host.pool.files = {"f": [(size_bytes, (a,))]}
            client.get("/v1/bills").raise_for_status()

        settle(10 * MIB)
        wait_until(lambda: host.limit(a) == 54 * MIB)
        settle(10 * MIB + 4096)
        writes = client.get("/v1/health").json()["limit_writes"]
        for turn in range(20):
            settle(10 * MIB + 4096 * (turn % 2))
        health = client.get("/v1/health").json()
        assert health["limit_writes"] == writes
        assert health["orders_put_off"] >= 10
        assert host.limit(a) == 54 * MIB - 4096
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller)


def test_the_api_describes_itself_and_says_errors_in_one_line(host: Host) -> None:
    host.start()
    transport = httpx.HTTPTransport(uds=str(host.run / "controller.sock"))
    with httpx.Client(transport=transport, base_url="http://controller") as client:
        routes = client.get("/openapi.json").json()["paths"]
        assert {"/v1/bills", "/v1/explain", "/v1/users", "/v1/what-if/exit", "/v1/budget", "/v1/health"} <= set(routes)
        assert [pool["pool"] for pool in client.get("/v1/health").json()["pools"]] in ([], ["demo"])
        for url, code in (("/v1/explain", 422), ("/v1/users?path=relative", 422), ("/v1/explain?tenant=/x", 404)):
            answer = client.get(url)
            assert answer.status_code == code
            assert isinstance(answer.json()["detail"], str)


def test_policies_are_shown_side_by_side_and_limits_follow_the_one_that_is_set(host: Host) -> None:
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 64 * MIB)
    host.pool.files = {"model.bin": [(20 * MIB, (a, b))], "own": [(4 * MIB, (a,))]}
    controller = host.start()
    host.bills()
    assert (host.limit(a), host.limit(b)) == (50 * MIB, 54 * MIB)

    told = host.ask("policies", "--payer", b.path)
    assert told["active"] == "proportional"
    assert {"evict", "fairride"} < set(told["need_history"])
    assert told["totals"]["avoid_sharing"] == {"billed_bytes": 44 * MIB, "nobody_bytes": 0, "conserves": False}
    assert told["totals"]["shared_parent"] == {"billed_bytes": 4 * MIB, "nobody_bytes": 20 * MIB, "conserves": True}
    shares = {line["tenant"]: line["shares"] for line in told["tenants"]}
    assert shares[b.path]["designated"] == {
        "share_bytes": 24 * MIB,
        "for_others_bytes": 14 * MIB,
        "by_others_bytes": 0,
    }
    assert shares[a.path]["designated"]["by_others_bytes"] == 14 * MIB
    assert "24.0M (+14.0M)" in host.ctl("policies", "--payer", b.path)
    assert "designated" not in host.ask("policies")["totals"]

    assert host.ctl("set-policy", "shared_parent") == "policy shared_parent\n"
    wait_until(lambda: (host.limit(a), host.limit(b)) == (60 * MIB, 64 * MIB))
    host.stop(controller)
    assert host.limit(a) == 64 * MIB
    host.start()
    assert host.ask("policies")["active"] == "shared_parent"
    wait_until(lambda: host.limit(a) == 60 * MIB)
    host.ctl("set-policy", "designated", "--payer", b.path)
    wait_until(lambda: (host.limit(a), host.limit(b)) == (64 * MIB, 40 * MIB))
    assert host.ctl("set-policy", "default") == "policy proportional\n"
    wait_until(lambda: (host.limit(a), host.limit(b)) == (50 * MIB, 54 * MIB))

    assert "needs the history of each page" in host.ctl("set-policy", "evict", code=2)
    assert "more bytes than there are" in host.ctl("set-policy", "avoid_sharing", code=2)
    assert "there is no policy equal" in host.ctl("set-policy", "equal", code=2)
    assert "--payer" in host.ctl("set-policy", "designated", code=2)
    assert "no memory cgroup" in host.ctl("policies", "--payer", "/there/is/none", code=2)


def test_a_configuration_is_checked_without_a_start(host: Host) -> None:
    config = host.run / "controller.toml"
    config.write_text("interval = 1\n")
    assert "unknown key interval" in host.ctl("run", "--check", "--config", str(config), code=2)
    config.write_text("interval_seconds = 1.0\n")
    assert host.ctl("run", "--check", "--config", str(config)).startswith("ok: policy proportional")
    assert not (host.state / "controller.db").exists()
    controller = host.start()
    assert host.ctl("run", "--check", "--config", str(config)).startswith("ok: ")  # beside one that runs
    host.stop(controller)


@pytest.mark.parametrize("where", [0, 4096])
def test_a_damaged_state_is_told_in_a_line_with_what_to_do(host: Host, where: int) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller)
    database = host.state / "controller.db"
    with database.open("r+b") as file:
        file.seek(where)
        file.write(b"damage" * 512)
    for words in (["run", "--check"], ["run"], ["restore"]):
        said = host.ctl(*words, code=2)
        assert str(database) in said
        assert "mv " in said


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO budget VALUES ('/a', -1, 0)",
        "INSERT INTO cap VALUES ('/a', '', 101, 1)",
        "INSERT INTO debt VALUES ((SELECT boot_id FROM journal), '/b', 7, -1.0)",
        "INSERT INTO own VALUES ((SELECT boot_id FROM journal), 'p', '/b', 7, -1)",
        "INSERT INTO need VALUES ((SELECT boot_id FROM journal), '/b', 7, -1)",
        "UPDATE journal SET found_max = -4096",
        "UPDATE journal SET inode = 0",
        "UPDATE journal SET raised = 'no JSON'",
        "UPDATE journal SET raised = '[[1, 2]]'",
        "UPDATE journal SET raised = '[[1, 2, \"3\"]]'",
    ],
)
def test_a_row_that_cannot_be_is_damage(host: Host, change: str) -> None:
    """The file is sound, and what is in it is not what this program writes."""
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    database = host.state / "controller.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as opened:
        assert opened.execute(change).rowcount == 1
    for words in (["run", "--check"], ["run"], ["restore"]):
        said = host.ctl(*words, code=2)
        assert f"{database} is damaged" in said
        assert "mv " in said
    assert host.limit(a) == 64 * MIB


def test_limits_come_back_although_the_database_is_damaged(host: Host) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    for file in host.state.glob("controller.db*"):
        file.write_bytes(b"damage" * 2048)
    said = host.ctl("restore", code=2)
    assert "limits put back by the marks on cgroups: 1" in said
    assert "mv " in said
    assert host.limit(a) == 64 * MIB
    assert "on cgroups: 0" in host.ctl("restore", code=2)


def test_a_database_of_a_later_version_is_no_damage(host: Host) -> None:
    """An earlier package must not have its budgets moved away."""
    host.stop(host.start())
    database = host.state / "controller.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as opened:
        assert opened.execute("PRAGMA user_version").fetchone() == (VERSION,)
        opened.execute(f"PRAGMA user_version = {VERSION + 1}")
    for words in (["run", "--check"], ["run"], ["restore"]):
        said = host.ctl(*words, code=2)
        assert f"{database} is of version {VERSION + 1}" in said
        assert "damaged" not in said


@pytest.mark.parametrize("earlier", [False, True])
def test_marks_are_read_as_this_version_and_the_one_before_write_them(host: Host, earlier: bool) -> None:
    a, b = host.tenant("a", 64 * MIB), host.tenant("b", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))], "g": [(10 * MIB, (b,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == host.limit(b) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    for file in host.state.glob("controller.db*"):
        file.unlink()
    directory, other = (host.cgroups.hierarchy.directory(tenant.path) for tenant in (a, b))
    mark = json.loads(os.getxattr(directory, "trusted.sharedfs.limits"))
    assert mark["found"] == {"max": 64 * MIB, "high": None, "swap": None}
    assert {"max": 54 * MIB, "high": None, "swap": None} in mark["ours"]
    if earlier:
        mark |= {"found": list(mark["found"].values()), "ours": [list(limits.values()) for limits in mark["ours"]]}
    os.setxattr(directory, "trusted.sharedfs.limits", json.dumps(mark).encode())
    os.setxattr(other, "trusted.sharedfs.limits", json.dumps(mark | {"found": {"later": 1}}).encode())
    assert host.ctl("restore") == "limits put back: 1\n", "one that cannot be read is none"
    assert (host.limit(a), host.limit(b)) == (64 * MIB, 54 * MIB)


def test_an_order_that_cannot_be_is_told_with_its_place(host: Host) -> None:
    host.stop(host.start())
    database = host.state / "controller.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as opened:
        opened.execute("INSERT INTO policy VALUES ('fairest', NULL)")
    for words in (["run", "--check"], ["run"]):
        said = host.ctl(*words, code=2)
        assert f"{database} has an order of `sharedctl set-policy`" in said
        assert "there is no policy fairest" in said


@pytest.mark.parametrize("how", ["a restore", "a new controller"])
def test_limits_come_back_without_the_database(host: Host, how: str) -> None:
    """Cgroups tell of them as long as they live; a limit that its manager set meanwhile stays."""
    a, b, odd = host.tenant("a", 64 * MIB), host.tenant("b", 80 * MIB), host.tenant("odd\xff name", 96 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,)), (20 * MIB, (b,)), (30 * MIB, (odd,))]}
    controller = host.start()
    wait_until(lambda: (host.limit(a), host.limit(b), host.limit(odd)) == (54 * MIB, 60 * MIB, 66 * MIB))
    host.stop(controller, signal.SIGKILL)
    host.cgroups.manager_sets(b.path, 70 * MIB)
    database = host.state / "controller.db"
    for file in host.state.glob("controller.db*"):
        file.unlink()
    if how == "a restore":
        assert host.ctl("restore") == "limits put back: 3\n"
    else:
        controller = host.start()
        assert {path: line["budget_bytes"] for path, line in host.bills().items()} == {
            a.path: 64 * MIB,
            b.path: 70 * MIB,
            odd.path: 96 * MIB,
        }
        host.stop(controller)
    assert (host.limit(a), host.limit(b), host.limit(odd)) == (64 * MIB, 70 * MIB, 96 * MIB)
    database.unlink()
    assert host.ctl("restore") == "limits put back: 0\n"


def test_a_controller_with_another_database_leaves_marks_alone(host: Host, tmp_path: Path) -> None:
    a = host.tenant("a", 64 * MIB)
    host.pool.files = {"f": [(10 * MIB, (a,))]}
    controller = host.start()
    wait_until(lambda: host.limit(a) == 54 * MIB)
    host.stop(controller, signal.SIGKILL)
    other = Host(tmp_path / "other-run", tmp_path / "other-state", host.cgroups, host.pool)
    assert other.ctl("restore") == "limits put back: 0\n"
    assert host.limit(a) == 54 * MIB
    assert host.ctl("restore") == "limits put back: 1\n"
    assert host.limit(a) == 64 * MIB
