"""Who allocated a page pays for it while it lives, others while they use it; then the page is nobody's (I10)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.controller import bill_of, bills, run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Tenant, Tenants, wait_until

MIB = 1 << 20
PAGE = 4096
FILES, FILE_BYTES = 4, 12 * MIB
BUDGET = 96 * MIB  # of which 16 stay free, and a tenant of these tests has some 10 of its own
IDLE_SECONDS = 8
SETTLED_SECONDS = 40.0


@pytest.fixture
def forgetful(run_dir: Path, unique_name: str, tenants: Tenants) -> Iterator[MountedPool]:
    """A pool that forgets a touch after four to eight seconds, and a controller."""
    options = ("--size", "256M", "--idle", str(IDLE_SECONDS), "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool, running_controller():
        try:
            yield pool
        finally:  # who has a file open keeps the daemon from ending
            for tenant in tenants.made:
                tenant.end_processes()


def make_files(tenant: Tenant, pool: MountedPool, files: int = FILES) -> None:
    tenant.do(
        f"for number in range({files}):\n"
        f"    with open(f'{pool.path}/mine{{number}}', 'wb') as file: file.write(b'x' * {FILE_BYTES})"
    )


def read_files(tenant: Tenant, pool: MountedPool, files: int = FILES) -> None:
    tenant.do(
        f"for number in range({files}):\n"
        f"    with open(f'{pool.path}/mine{{number}}', 'rb') as file:\n"
        f"        while file.read({MIB}): pass"
    )


def share(tenant: Tenant) -> int:
    return int(bill_of(tenant.path, bills())["share_bytes"])


def test_the_last_reader_pays_until_it_has_stopped_and_no_longer(forgetful: MountedPool, tenants: Tenants) -> None:
    """A backup job reads everybody's files once, and their maker exits: what it inherits it is rid of in due time."""
    maker, backup = tenants.make("maker", BUDGET), tenants.make("backup", BUDGET)
    make_files(maker, forgetful)
    read_files(backup, forgetful)
    assert share(backup) == FILES * FILE_BYTES // 2
    wait_until(lambda: share(backup) == 0, "its touches are forgotten, for the maker lives", SETTLED_SECONDS)
    assert share(maker) == FILES * FILE_BYTES, "who allocated pays while it lives"

    read_files(backup, forgetful)
    maker.exit()
    wait_until(lambda: share(backup) == FILES * FILE_BYTES, "it inherits what it has just used", SETTLED_SECONDS)
    wait_until(lambda: share(backup) == 0, "it has stopped using it", SETTLED_SECONDS)
    told = bills()
    assert told["unclaimed_bytes"] == FILES * FILE_BYTES
    assert bill_of(backup.path, told)["debt_bytes"] == 0
    wait_until(lambda: backup.limit() == BUDGET, "its limit is the manager's", SETTLED_SECONDS)
    backup.do(
        f"fd = os.open('{forgetful.path}/own', os.O_RDWR | os.O_CREAT)\nassert os.write(fd, b'x' * {PAGE}) == {PAGE}"
    )
    assert share(backup) == PAGE
    forgetful.check_conservation()


def test_who_maps_what_an_exited_tenant_made_pays_for_as_long_as_it_does(
    forgetful: MountedPool, tenants: Tenants
) -> None:
    """The control: the same, with a user that goes on using."""
    maker, user = tenants.make("maker", BUDGET), tenants.make("user", BUDGET)
    make_files(maker, forgetful, 2)
    user.do(
        f"fd = os.open('{forgetful.path}/mine0', os.O_RDONLY)\n"
        "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ); os.close(fd)\n"
        f"result = sum(m[at] for at in range(0, {FILE_BYTES}, {PAGE}))"
    )
    read_files(user, forgetful, 2)
    maker.exit()
    wait_until(lambda: share(user) == FILE_BYTES, "of the other file it has forgotten its touch", SETTLED_SECONDS)
    assert bills()["unclaimed_bytes"] == FILE_BYTES
    user.do("m.close()")
    wait_until(lambda: share(user) == 0, "it has let go", SETTLED_SECONDS)
    assert bills()["unclaimed_bytes"] == 2 * FILE_BYTES


def test_files_are_handed_over_and_to_nobody(forgetful: MountedPool, tenants: Tenants) -> None:
    maker, heir = tenants.make("maker", BUDGET), tenants.make("heir", FILE_BYTES // 2)
    make_files(maker, forgetful, 2)
    wait_until(lambda: not any(set(held.payers) - {held.owner} for held in forgetful.holdings().classes), "it pays")
    told = run_sharedctl("claim", str(forgetful.path / "mine0"), heir.path).stdout
    assert f"{heir.path} owns 12.0M in 1 file of {forgetful.path}/mine0" in told
    assert "are debt until it frees memory" in told
    assert share(heir) in (FILE_BYTES, FILE_BYTES // 2), "the maker may have just used it"
    wait_until(lambda: share(maker) == FILE_BYTES, "the maker pays for the other one only", SETTLED_SECONDS)
    assert share(heir) == FILE_BYTES

    answer = sharedctl("claim", str(forgetful.path), "nobody", "--recursive")
    assert (answer["tenant"], answer["files"], answer["handed_bytes"]) == (None, 2, 2 * FILE_BYTES)
    wait_until(lambda: bills()["unclaimed_bytes"] == 2 * FILE_BYTES, "nobody uses them", SETTLED_SECONDS)
    assert share(maker) == share(heir) == 0
    forgetful.check_conservation()


def test_a_claim_outlives_the_daemon(forgetful: MountedPool, tenants: Tenants) -> None:
    maker, heir = tenants.make("maker", BUDGET), tenants.make("heir", BUDGET)
    make_files(maker, forgetful, 1)
    sharedctl("claim", str(forgetful.path / "mine0"), heir.path)
    before = forgetful.status()
    os.kill(before.daemon_pid, signal.SIGKILL)
    wait_until(
        lambda: (now := forgetful.status_or_none()) is not None and now.restarts == before.restarts + 1,
        "another daemon serves",
        SETTLED_SECONDS,
    )
    wait_until(lambda: share(heir) == FILE_BYTES, "it is the heir's", SETTLED_SECONDS)
    maker.exit()
    assert share(heir) == FILE_BYTES


@pytest.mark.parametrize("recursive", [(), ("--recursive",)])
def test_what_cannot_be_claimed_is_said_in_one_line(
    forgetful: MountedPool, tenants: Tenants, recursive: tuple[str, ...]
) -> None:
    (forgetful.path / "file").write_bytes(b"x")
    (forgetful.path / "link").symlink_to("file")
    os.mkfifo(forgetful.path / "fifo")
    for path, tenant, why in (
        (forgetful.path / "none", "nobody", "there is no such file"),
        (forgetful.path, "/no/such", "no memory cgroup"),
        (Path("/etc/passwd"), "nobody", "is on no pool"),
        ("", "nobody", "the path is empty"),
        (forgetful.path / "link", "nobody", "no regular file"),
        (forgetful.path / "fifo", "nobody", "no regular file"),
        (forgetful.path / "file", "/", "the root cgroup"),
        (forgetful.path / "file", "/x/../", "the root cgroup"),
    ):
        refused = run_sharedctl("claim", str(path), tenant, *recursive)
        assert refused.returncode == 2
        assert why in refused.stderr
        assert refused.stderr.count("\n") == 1
    if not recursive:
        assert "add --recursive" in run_sharedctl("claim", str(forgetful.path), "nobody").stderr
