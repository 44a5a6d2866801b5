"""`sharedctl zombies` on the real kernel: what a removed cgroup leaves behind is found, with its file and its users.

The host has dying cgroups of others, too: a test looks below a cgroup of its own only.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from controller.zombies.census import take_census
from deploy.demo.host import kernel_release, zombies_stay
from sharedfs.linux.cgroups import CgroupVersion, find_memory_hierarchy
from tests.support.tenants import Tenant, Tenants, wait_until

FILE_BYTES = 3 << 20

pytestmark = pytest.mark.skipif(
    not zombies_stay(kernel_release()), reason="this kernel gives a removed cgroup's pages away"
)


def zombies() -> dict[str, Any]:
    command = [sys.executable, "-m", "controller.cli.main", "zombies", "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def held_below(path: str) -> int:
    """The census alone: quick, where the whole table looks at every shared file of the host."""
    return sum(held.shmem_bytes for held in take_census(find_memory_hierarchy()).held if held.path == path)


def holders_below(path: str) -> list[dict[str, Any]]:
    return [holder for holder in zombies()["holders"] if path in holder["below"]]


@pytest.fixture
def payer(tenants: Tenants) -> Tenant:
    """Who touches first, and goes."""
    return tenants.make("payer")


@pytest.fixture
def user(tenants: Tenants) -> Tenant:
    """Who uses what the payer left."""
    return tenants.make("user")


@pytest.fixture
def own_tmpfs(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "tmpfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "sharedfs-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_file_of_a_removed_cgroup_is_found_with_those_who_use_it(
    own_tmpfs: Path, tenants: Tenants, payer: Tenant, user: Tenant
) -> None:
    file = own_tmpfs / "left behind"
    payer.do(f"f = open({str(file)!r}, 'wb'); f.write(bytes({FILE_BYTES})); f.close(); result = 0")
    user.do(
        f"import mmap; fd = os.open({str(file)!r}, os.O_RDONLY)\n"
        "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ); os.close(fd); result = sum(m[::4096])"
    )
    assert holders_below(tenants.path) == []  # the payer lives, and nothing is held below us
    times = file.stat()
    payer.exit()
    wait_until(lambda: held_below(tenants.path) == FILE_BYTES, "the kernel counts what the dying one holds", 10)

    [holder] = holders_below(tenants.path)
    assert holder["path"] == str(file)
    assert (holder["kind"], holder["size_bytes"], holder["held_bytes"]) == ("tmpfs", FILE_BYTES, FILE_BYTES)
    assert holder["exact"]
    [who] = holder["users"]
    assert (who["cgroup"], who["how"]) == (user.path, ["holds", "maps"])  # Python keeps a descriptor of what it maps
    assert file.stat() == times  # looked at, and not touched
    user.end_processes()
    assert holders_below(tenants.path)[0]["users"] == []

    file.unlink()
    wait_until(lambda: held_below(tenants.path) == 0, "without its file the dying cgroup holds nothing", 10)


def test_memory_without_a_name_is_found_through_those_who_hold_it(
    tenants: Tenants, payer: Tenant, user: Tenant
) -> None:
    """A memfd that was passed on, and holes in it: only what is resident is looked at, and nothing is allocated."""
    memfd = os.memfd_create("passed on")
    try:
        os.ftruncate(memfd, 8 * FILE_BYTES)
        source = f"/proc/{os.getpid()}/fd/{memfd}"
        payer.do(f"fd = os.open({source!r}, os.O_RDWR); result = os.pwrite(fd, bytes({FILE_BYTES}), {FILE_BYTES})")
        user.do(f"fd = os.open({source!r}, os.O_RDWR); result = fd")
        payer.exit()
        wait_until(lambda: held_below(tenants.path) == FILE_BYTES, "the kernel counts what the dying one holds", 10)
        [holder] = holders_below(tenants.path)
        assert (holder["kind"], holder["size_bytes"]) == ("memfd", 8 * FILE_BYTES)
        assert holder["held_bytes"] == FILE_BYTES
        assert holder["path"].startswith("/memfd:passed on")
        assert {(who["pid"], *who["how"]) for who in holder["users"]} == {
            (os.getpid(), "holds"),
            (user.agents[0].pid, "holds"),
        }
        assert os.fstat(memfd).st_blocks * 512 == FILE_BYTES
    finally:
        os.close(memfd)


SEGMENT = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
def attach(segment):
    address = libc.shmat(segment, None, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return address
"""


def test_a_segment_of_system_v_is_found(tenants: Tenants, payer: Tenant, user: Tenant) -> None:
    made = payer.do(f"{SEGMENT}\nsegment = libc.shmget(0, {FILE_BYTES}, 0o1600)\nresult = segment")
    assert isinstance(made, int)
    try:
        payer.do(f"ctypes.memset(attach({made}), 1, {FILE_BYTES}); result = 0")
        user.do(f"{SEGMENT}\nattach({made}); result = 0")
        payer.exit()
        wait_until(lambda: held_below(tenants.path) == FILE_BYTES, "the kernel counts what the dying one holds", 10)
        [holder] = holders_below(tenants.path)
        assert (holder["kind"], holder["held_bytes"]) == ("sysv", FILE_BYTES)
        assert f"(id {made})" in holder["path"]
        assert [who["cgroup"] for who in holder["users"]] == [user.path]

        user.end_processes()
        alone = [holder for holder in zombies()["holders"] if f"(id {made})" in holder["path"]]
        assert [(holder["held_bytes"], holder["users"]) for holder in alone] == [(None, [])]
    finally:
        subprocess.run(["ipcrm", "-m", str(made)], check=True)


def test_the_dying_are_counted(own_tmpfs: Path, tenants: Tenants, payer: Tenant) -> None:
    file = own_tmpfs / "f"
    payer.do(f"f = open({str(file)!r}, 'wb'); f.write(bytes({FILE_BYTES})); f.close(); result = 0")
    payer.exit()
    wait_until(lambda: held_below(tenants.path) == FILE_BYTES, "the kernel counts what the dying one holds", 10)
    answer = zombies()
    assert answer["dying"] >= 1
    assert answer["kernel_bytes"] >= answer["dying"] * 4096
    if answer["cgroup_version"] == CgroupVersion.V2:
        assert [group["dying"] for group in answer["groups"] if group["cgroup"] == tenants.path] == [1]


@pytest.mark.timeout(60)
def test_a_hanging_filesystem_is_not_touched(own_tmpfs: Path, tenants: Tenants, payer: Tenant, tmp_path: Path) -> None:
    """FUSE mounts whose servers do not answer, one of them on a tmpfs: the answer comes all the same, without those."""
    places = [tmp_path / "hangs", own_tmpfs / "directory" / "hangs"]
    (own_tmpfs / "directory").mkdir()
    with ExitStack() as resources:
        for place in places:
            server = resources.enter_context(
                subprocess.Popen([sys.executable, "-c", _SILENT_SERVER, str(place)], stdout=subprocess.PIPE, text=True)
            )
            resources.callback(subprocess.run, ["umount", "-l", str(place)], check=True)
            resources.callback(server.kill)  # and with it goes the connection: nobody hangs
            assert server.stdout is not None
            assert server.stdout.readline() == "mounted\n"
        file = own_tmpfs / "f"
        payer.do(f"f = open({str(file)!r}, 'wb'); f.write(bytes({FILE_BYTES})); f.close(); result = 0")
        payer.exit()
        wait_until(lambda: held_below(tenants.path) == FILE_BYTES, "the kernel counts what the dying one holds", 10)
        assert [holder["path"] for holder in holders_below(tenants.path)] == [str(file)]


_SILENT_SERVER = """
import ctypes, os, sys, time
place = sys.argv[1]
os.mkdir(place)
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"silent", place.encode(), b"fuse.silent", 0, options):
    raise OSError(ctypes.get_errno(), "mount")
print("mounted", flush=True)
time.sleep(600)
"""
