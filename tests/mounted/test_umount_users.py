"""`sharedfs umount` names every kind of user, also after the mount was taken away, and never waits for one in vain."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharedfs.linux.file_device import filesystem_lives
from sharedfs.linux.mountinfo import mount_at
from sharedfs.mount.mount_users import users_of
from sharedfs.pool import registry
from tests.support.mount import MountedPool, sharedfs
from tests.support.tenants import PATIENCE, Tenant, Tenants, wait_until

END_SECONDS = 30.0
AT_ONCE_SECONDS = 12.0 * PATIENCE  # it was 21, on an idle host

OPEN = "fd = os.open('{place}/f', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 4096)\n"
LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
MAP = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
assert libc.mmap(None, 4096, 3, 1, fd, 0) != ctypes.c_void_p(-1).value
os.close(fd)
"""
# open_tree(AT_FDCWD, ..., OPEN_TREE_CLONE): a mount of its own that is attached nowhere
CLONE = "fd = libc.syscall(428, -100, b'{place}', 1); assert fd >= 0\n"
SEND = """
import array, socket
ours, theirs = socket.socketpair()
ours.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
os.close(fd)
"""
KINDS = {
    "directory": "os.chdir('{place}')",
    "open file": OPEN,
    "deleted file": OPEN + "os.unlink('{place}/f')",
    "mapping": OPEN + LIBC + MAP,
    "clone of the mount": LIBC + CLONE,
}


@pytest.fixture
def user(tenants: Tenants) -> Iterator[Tenant]:
    tenant = tenants.make("user")
    yield tenant
    tenant.end_processes()


def umount(*arguments: str) -> subprocess.CompletedProcess[str]:
    began = time.monotonic()
    done = sharedfs("umount", *arguments, check=False)
    assert time.monotonic() - began < AT_ONCE_SECONDS
    return done


def wait_for_end(pool: MountedPool) -> None:
    wait_until(lambda: registry.read_record(pool.name) is None, "the pool has ended", END_SECONDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_user_is_named_before_and_after(pool: MountedPool, user: Tenant, kind: str) -> None:
    place = str(pool.path)
    user.do(KINDS[kind].format(place=place))
    refused = umount(place)
    assert refused.returncode == 2
    assert user.path in refused.stderr
    assert mount_at(place) is not None
    for _ in range(2):
        lazy = umount("--lazy", place)
        assert lazy.returncode == 0, lazy.stderr
        assert user.path in lazy.stdout
    # By paths, as the links in /proc have them, nobody is to be seen any more.
    assert users_of(place, None, None, None) == []
    again = umount(place)
    assert again.returncode == 2
    assert user.path in again.stderr
    assert "--force" in again.stderr
    user.end_processes()
    wait_for_end(pool)


def test_a_user_that_no_process_shows_is_said_to_be_one(pool: MountedPool, user: Tenant) -> None:
    place = str(pool.path)
    user.do((OPEN + SEND).format(place=place))
    refused = umount(place)
    assert refused.returncode == 2
    assert "cannot be named" in refused.stderr
    for _ in range(2):
        lazy = umount("--lazy", place)
        assert lazy.returncode == 0, lazy.stderr
        assert "goes on" in lazy.stdout
        assert "cannot be named" in lazy.stdout
    user.do("fd = socket.recv_fds(theirs, 1, 1)[1][0]; assert os.pread(fd, 1, 0) == bytes(1)")
    user.end_processes()
    wait_for_end(pool)


def test_a_mount_that_no_process_shows_keeps_the_pool_and_umount_says_so(pool: MountedPool, user: Tenant) -> None:
    place = str(pool.path)
    user.do((LIBC + CLONE + SEND).format(place=place))
    done = umount(place)
    assert done.returncode == 0, done.stderr
    assert "goes on" in done.stdout
    assert "--force" in done.stdout
    assert mount_at(place) is None
    assert pool.status().mountpoint == place
    assert umount("--force", place).returncode == 0
    assert registry.read_record(pool.name) is None


@contextmanager
def plain_tmpfs(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "over", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("manner", [(), ("--lazy",), ("--force",)])
def test_a_mount_over_it_is_to_go_first(pool: MountedPool, manner: tuple[str, ...]) -> None:
    with plain_tmpfs(pool.path):
        refused = umount(*manner, str(pool.path))
        assert refused.returncode == 2
        assert f"a tmpfs is mounted over {pool.path}" in refused.stderr
        assert "--force" not in refused.stderr
        assert pool.path.joinpath("f").write_text("over")
    assert not pool.path.joinpath("f").exists()
    assert umount(*manner, str(pool.path)).returncode == 0
    assert registry.read_record(pool.name) is None


def test_a_mount_in_it_is_to_go_first(pool: MountedPool) -> None:
    below = pool.path / "below"
    below.mkdir()
    with plain_tmpfs(below):

        def is_refused_for_it() -> bool:
            refused = umount(str(pool.path))
            assert refused.returncode == 2
            return f"unmount {below} first" in refused.stderr

        # A mount namespace that another test makes has a copy of every mount: it is named before.
        wait_until(is_refused_for_it, "no other user is there", 30)


def test_users_are_told_while_the_daemon_answers_nobody(pool: MountedPool, user: Tenant) -> None:
    user.do(KINDS["directory"].format(place=pool.path))
    mounted = mount_at(str(pool.path))
    assert mounted is not None
    daemon = pool.status().daemon_pid
    os.kill(daemon, signal.SIGSTOP)
    try:
        found = users_of(str(pool.path), mounted.device, mounted, None)
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert user.agents[0].pid in [seen.process_id for seen in found]


def test_the_kernel_tells_whether_a_filesystem_lives(pool: MountedPool) -> None:
    mounted = mount_at(str(pool.path))
    assert mounted is not None
    assert filesystem_lives(mounted.device) is True
    assert umount(str(pool.path)).returncode == 0
    assert filesystem_lives(mounted.device) is False
