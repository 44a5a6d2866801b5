"""A pytest plugin that prints a row of docs/compatibility.md: what a run showed to work on this kernel and userland.

    python -m pytest -p tests.compatibility tests/mounted tests/containers

A cell is the outcome of tests that were really run: "works (12)" counts them, "-" says that none was.
"""

import os
import platform
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.perf_events import TaskEvents

# column: what the ids of its tests look like
_COLUMNS = {
    "attribution": r"tests/mounted/test_(attribution|exit|tenant_rules)\.py",
    "shared mappings": r"tests/mounted/.*mapp",
    "the pool pays, no zombies": r"tests/mounted/test_pool_pays\.py",
    "settlement": r"tests/mounted/test_(settlement|new_budget|admission|debts_borne|exit_under_load)\.py|"
    r"test_limits_contract\.py.*\[real",
    "swap": r"tests/mounted/test_swap\.py",
    "runc": r"tests/containers/.*\brunc\b",
    "crun": r"tests/containers/.*\bcrun\b",
    "podman": r"tests/containers/.*\bpodman\b",
    "bubblewrap": r"tests/containers/.*\bbwrap\b",
    "systemd units": r"tests/guest/test_units\.py",
}
_PROGRAMS = {"runc": "runc", "crun": "crun", "podman": "podman", "bubblewrap": "bwrap", "systemd units": "systemctl"}

_outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "failed":
        for column, pattern in _COLUMNS.items():
            if re.search(pattern, report.nodeid):
                _outcomes[column][report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("this run as a row of docs/compatibility.md")
    headings = ["kernel", "memory cgroups", "userland", "callers", *_COLUMNS]
    for cells in (headings, ["---"] * len(headings), _row()):
        terminalreporter.write_line(f"| {' | '.join(cells)} |")


def _row() -> list[str]:
    release = re.match(r"\d+\.\d+", platform.release())
    return [
        f"{release[0] if release else platform.release()}{_machine()}",
        _cgroups(),
        platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        _callers(),
        *(_cell(column) for column in _COLUMNS),
    ]


def _machine() -> str:
    """Which of the guests of tests/guest this is, if any."""
    processor = Path("/proc/cpuinfo").read_text()
    names = {"User Mode Linux": " (User-Mode Linux)", "QEMU TCG": " (qemu)"}
    return next((name for sign, name in names.items() if sign in processor), "")


def _cgroups() -> str:
    try:
        hierarchy = find_memory_hierarchy()
    except HostFault:
        return "none"
    manager = ", systemd" if Path("/run/systemd/system").is_dir() else ""
    return f"v{hierarchy.version.value}{' (hybrid)' if hierarchy.hybrid else ''}{manager}"


def _callers() -> str:
    """How the daemon keeps up with threads that move to other cgroups."""
    try:
        TaskEvents().close()
    except HostFault:
        return "read at each request"
    return "told by the kernel"


def _cell(column: str) -> str:
    counted = _outcomes[column]
    if not counted["passed"] + counted["failed"]:
        return "-"
    failed = counted["failed"]
    told = f"{failed} of {counted.total()} FAIL" if failed else f"works ({counted['passed']})"
    version = _version(_PROGRAMS[column]) if column in _PROGRAMS else ""
    return f"{version}: {told}" if version else told


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return ""
    said = subprocess.run(
        [program, "--version"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    ).stdout
    found = re.search(r"\d+(\.\d+)*", said)
    return found[0] if found else ""
