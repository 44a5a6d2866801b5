"""A real pool for tests: mounted by the real command, watched through its feed, unmounted whatever happens."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sharedfs.api.types import NEW_IN_STATUS, Holdings, PoolStatus
from sharedfs.common import paths
from sharedfs.linux import cachestat
from sharedfs.linux.mountinfo import mount_at
from sharedfs.pool import registry
from tests.support.tenants import PATIENCE, Tenant, wait_until


def sharedfs(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "sharedfs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def unmount(place: str) -> None:
    """Plainly, as a user would whose pool nobody uses.

    A mount namespace that was made meanwhile, by another test, has a copy of the mount until it ends.
    """
    wait_until(lambda: _is_unmounted(place), f"{place} is unmounted", 30)


def _is_unmounted(place: str) -> bool:
    done = sharedfs("umount", place, check=False)
    assert done.returncode == 0 or "is in use by" in done.stderr, done.stderr
    return done.returncode == 0


@dataclass(frozen=True)
class MountedPool:
    """A mounted pool as the tests see it."""

    path: Path
    name: str

    def get(self, route: str, **query: str) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(paths.feed_socket(self.name)))
        with httpx.Client(transport=transport, base_url="http://pool", timeout=20 * PATIENCE) as client:
            return client.get(route, params=query)

    def holdings(self) -> Holdings:
        return Holdings.model_validate_json(self.get("/v1/holdings").raise_for_status().content)

    def status(self) -> PoolStatus:
        return PoolStatus.model_validate_json(
            self.get("/v1/status", knows=str(len(NEW_IN_STATUS))).raise_for_status().content
        )

    def status_or_none(self) -> PoolStatus | None:
        """None when the daemon dies while it is asked."""
        try:
            return self.status()
        except httpx.TransportError:
            return None

    def knows(self, tenant: Tenant) -> bool:
        """Whether the pool takes it for live. Others may be known as well: whoever asked while it was busy."""
        return any(ref.path == tenant.path for ref in self.holdings().tenants)

    def used(self, tenant: Tenant) -> int:
        """Bytes of the pages that a tenant uses."""
        holdings = self.holdings()
        ids = {ref.id for ref in holdings.tenants if ref.path == tenant.path}
        return sum(held.bytes for held in holdings.classes if ids & set(held.payers))

    def files_of(self, path: str) -> list[dict[str, Any]]:
        """All files of which the tenant with this cgroup path uses pages, as the feed tells them page by page."""
        files: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.get("/v1/tenants/files", path=path, after=str(after)).raise_for_status().json()
            files += page["files"]
            after = page["next_after"]
        return files

    def mapped(self, tenant: Tenant) -> int:
        holdings = self.holdings()
        ids = {ref.id for ref in holdings.tenants if ref.path == tenant.path}
        return sum(held.bytes for held in holdings.classes if ids & set(held.mapped))

    def resident_by_statfs(self) -> int:
        pool = os.statvfs(self.path)
        return (pool.f_blocks - pool.f_bfree) * pool.f_frsize

    def state_bytes(self) -> int:
        """What the pool keeps of itself: a tmpfs in which the keeper, and nobody by name, has a directory open."""
        blocks = 0  # statvfs tells none of a tmpfs without bound
        for file in self.kept("journal").rglob("*"):
            with suppress(FileNotFoundError):  # the daemon writes anew, and renames
                blocks += file.stat().st_blocks
        return 512 * blocks

    def kept(self, name: str) -> Path:
        """The directory with `name` in it that the keeper has open, and that has no path of its own."""
        held = Path(f"/proc/{self.status().keeper_pid}/fd")
        return next(place for place in held.iterdir() if (place / name).exists())

    def wait_for_scan(self) -> None:
        """Until a mapping scan has begun and ended after now."""
        begun = self.status().mapping_scans
        wait_until(lambda: self.status().mapping_scans >= begun + 2, "two mapping scans", 20)

    def check_conservation(self) -> Holdings:
        """I1 as far as the pool keeps it: classes sum up to what is resident, which is what the tmpfs holds.

        The two are read one after the other, and the kernel forgets files of processes that ended in its own time: they
        have to agree at a moment when the books stood still in between, within seconds.
        """

        def books_and_tmpfs_agree() -> Holdings | None:
            holdings, resident = self.holdings(), self.resident_by_statfs()
            assert sum(held.bytes for held in holdings.classes) == holdings.resident_bytes
            return holdings if holdings.resident_bytes == resident else None

        try:
            return wait_until(books_and_tmpfs_agree, "the books have what the tmpfs holds")
        except AssertionError as failure:
            raise AssertionError(f"{failure}: {self.what_is_where()}") from failure

    def differences(self) -> list[dict[str, Any]]:
        """What `sharedctl audit` finds, page by page."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            transport = httpx.HTTPTransport(uds=str(paths.feed_socket(self.name)))
            with httpx.Client(transport=transport, base_url="http://pool", timeout=60 * PATIENCE) as client:
                page = client.post("/v1/audit", params={"after": str(after)}).raise_for_status().json()
            found += page["differences"]
            after = page["next_after"]
        return found

    def check_audit(self, seconds: float = 20) -> None:
        """Nothing differs, but for pages that become the pool's again in their time. Of a pool that is served."""
        record = registry.record_at(str(self.path))
        if not cachestat.can_be_asked() or record is None or not registry.is_served(record):
            return
        found: list[dict[str, Any]] = []

        def finds_nothing() -> bool:
            found[:] = self.differences()
            return not found

        try:
            wait_until(finds_nothing, "an audit finds nothing", seconds)
        except AssertionError as failure:
            raise AssertionError(f"{failure}: {found[:5]}") from failure

    def what_is_where(self) -> str:
        """For a message: the pages of each file in the tmpfs, and its bytes in the books."""
        store = self.kept("removed")
        in_tmpfs = {
            path.lstat().st_ino: f"{path.relative_to(store)}: {path.lstat().st_blocks // 8} pages"
            for path in store.rglob("*")
        }
        in_books = {
            file["inode"]: f"{file['path']}: {file['resident_bytes']} bytes"
            for tenant in self.holdings().tenants
            for file in self.files_of(tenant.path)
        }
        sums = f"{self.resident_by_statfs()} bytes in the tmpfs, {self.holdings().resident_bytes} in the books"
        return f"{sums}; in the tmpfs {in_tmpfs}, in the books {in_books}"


@contextmanager
def mounted_pool(place: Path, name: str, *options: str) -> Iterator[MountedPool]:
    place.mkdir(exist_ok=True)
    sharedfs("mount", str(place), "--name", name, *options)
    try:
        yield MountedPool(place, name)
    finally:
        unmount_whatever_happened(place)


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """A directory once more, at a place that is made for it."""
    target.mkdir()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def unmount_whatever_happened(place: Path) -> None:
    """Unmount lazily, so that a failed test's open files do not matter, and wait until keeper and daemon are gone."""
    record = registry.record_at(str(place))
    while mount_at(str(place)) is not None:
        subprocess.run(["umount", "-l", str(place)], check=True)
    if record is not None:
        if not registry.wait_for_end(record, 30):
            said = paths.daemon_log(record.name).read_text()
            os.kill(record.keeper_pid, signal.SIGKILL)
            raise AssertionError(f"the keeper of {place} did not end: {said}")
        registry.clean_up_dead(record)
