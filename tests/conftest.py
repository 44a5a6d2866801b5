"""Fixtures of the tests on a real mount with real cgroups (`mounted/`, `programs/`, `hostile/`, `containers/`).

They need root, /dev/fuse and a memory cgroup hierarchy.
"""

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import tmpfs
from tests.support.tenants import Tenants, tenants_below

_numbers = count()

# A busy host is no fault, and CI compares: to discover, run pytest with --hypothesis-profile=random.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    with_mounts = {here / "mounted", here / "programs", here / "hostile", here / "containers", here / "chaos"}
    reason = None
    if os.geteuid() != 0:
        reason = "mounting needs root"
    elif not Path("/dev/fuse").exists():
        reason = "there is no /dev/fuse"
    if reason is not None:
        for item in items:
            if with_mounts.intersection(item.path.parents):
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
        monkeypatch.setenv("SHAREDFS_HOST_LOCK", f"{directory}/host.lock")
        yield Path(directory)


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    """A mounted pool of 256 MiB."""
    options = ("--size", "256M", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted
        mounted.check_audit()


@pytest.fixture
def tenants(unique_name: str) -> Iterator[Tenants]:
    with tenants_below(unique_name) as made:
        yield made


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[MountedPool]:
    """A pool for all tests of a module, which keep to directories of their own: a mount takes a second."""
    name = f"sharedfs-test-{os.getpid()}-{next(_numbers)}"
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        os.chmod(directory, 0o755)  # other users come through
        patch.setenv("SHAREDFS_RUN_DIR", f"{directory}/run")
        patch.setenv("SHAREDFS_STATE_DIR", f"{directory}/state")
        patch.setenv("SHAREDFS_HOST_LOCK", f"{directory}/host.lock")
        options = ("--size", "512M", "--cgroup-parent", f"{name}-pools")
        with mounted_pool(Path(directory) / "mnt", name, *options) as mounted:
            yield mounted


@pytest.fixture(scope="module")
def plain_tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        with tmpfs(Path(directory) / "tmpfs") as mounted:
            yield mounted


@pytest.fixture(params=["tmpfs", "sharedfs"])
def place(request: pytest.FixtureRequest) -> Path:
    """An empty directory, once on tmpfs and once on a pool: what holds on the one must hold on the other.

    The mounts are found by name and not by parameter, so that tests in any order mount each of them once a module.
    """
    if request.param == "tmpfs":
        root: Path = request.getfixturevalue("plain_tmpfs")
    else:
        root = request.getfixturevalue("shared_pool").path
    directory = root / f"test-{next(_numbers)}"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    return directory
