"""Fixtures of the tests on a real mount with real cgroups. They need root, /dev/fuse and a memory cgroup hierarchy."""

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Tenants, tenants_below

_numbers = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = None
    if os.geteuid() != 0:
        reason = "mounting needs root"
    elif not Path("/dev/fuse").exists():
        reason = "there is no /dev/fuse"
    if reason is not None:
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def unique_name() -> str:
    """A name for cgroups and pools that no other test (or test run) has."""
    return f"sharedfs-test-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run-time and state directories of the test's own, in a place with a short path (sockets)."""
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory:
        monkeypatch.setenv("SHAREDFS_RUN_DIR", f"{directory}/run")
        monkeypatch.setenv("SHAREDFS_STATE_DIR", f"{directory}/state")
        yield Path(directory)


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    """A mounted pool of 256 MiB."""
    options = ("--size", "256M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


@pytest.fixture
def tenants(unique_name: str) -> Iterator[Tenants]:
    with tenants_below(unique_name) as made:
        yield made
