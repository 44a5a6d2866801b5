"""A tenant that holds a directory's lock for ever: unclaimed files of others are deleted all the same.

It writes to a file from memory that never comes (userfaultfd(2)), and unlinks that file: the unlink waits for the file
with the directory's lock held. So does whoever tells the kernel that a name in that directory is gone.
"""

import json
import os
from collections.abc import Iterator
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest

from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Agent, AgentError, Tenants, wait_until

MIB = 1 << 20
PATIENCE = 30.0

# struct uffdio_api: api, features, ioctls; struct uffdio_register: start, length, mode, ioctls.
_NEVER_COMES = """
import struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
def checked(done):
    if done < 0: raise OSError(ctypes.get_errno(), 'userfaultfd')
    return done
faults = checked(libc.syscall(323, os.O_CLOEXEC))
checked(libc.ioctl(faults, 0xC018AA3F, ctypes.create_string_buffer(struct.pack('QQQ', 0xAA, 0, 0))))
never = libc.mmap(None, 8192, 3, 0x22, -1, 0)
checked(libc.ioctl(faults, 0xC020AA00, ctypes.create_string_buffer(struct.pack('QQQQ', never, 8192, 1, 0))))
"""


def send(agent: Agent, statements: str) -> None:
    """Without waiting for an answer, which does not come."""
    assert agent.process.stdin is not None
    agent.process.stdin.write(json.dumps(statements) + "\n")
    agent.process.stdin.flush()


def waits_in(agent: Agent, call: str) -> bool:
    return call in Path(f"/proc/{agent.pid}/stack").read_text()


@pytest.fixture
def pool(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools", "--unclaimed", "delete", "--grace", "0.5")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def hold_lock(tenants: Tenants, directory: Path) -> list[Agent]:
    holder = tenants.make("holder")
    writer, remover = holder.agent(), holder.agent()
    try:
        writer.do(_NEVER_COMES)
    except AgentError as error:
        if error.errno not in (ENOSYS, EPERM):
            raise
        pytest.skip("this kernel has no userfaultfd, or lets nobody use it")
    writer.do(f"fd = os.open('{directory}/held', os.O_RDWR | os.O_CREAT)")
    send(writer, "libc.write(fd, never, 8192)")
    wait_until(lambda: waits_in(writer, "handle_userfault"), "it waits for its memory", PATIENCE)
    send(remover, f"os.unlink('{directory}/held')")
    wait_until(lambda: waits_in(remover, "unlink"), "the unlink waits for the write", PATIENCE)
    return [writer, remover]


def test_one_stuck_directory_keeps_no_other_unclaimed_file(pool: MountedPool, tenants: Tenants) -> None:
    stuck, free = pool.path / "stuck", pool.path / "free"
    stuck.mkdir()
    free.mkdir()
    makers = [tenants.make(f"maker{number}") for number in range(4)]
    for number, maker in enumerate(makers):
        maker.do(f"open('{(stuck, free)[number % 2]}/old{number}', 'wb').write(bytes({MIB}))")
    agents = hold_lock(tenants, stuck)
    try:
        for number, maker in enumerate(makers):
            maker.exit()
            wait_until(lambda n=number: pool.status().deleted_files == n + 1, "it is deleted", PATIENCE)  # type: ignore[misc]
        assert os.listdir(free) == []
        held_bytes = 2 * MIB  # of the kernel, which has not heard that the stuck directory's two are gone
        wait_until(lambda: pool.holdings().resident_bytes == held_bytes, "those of the others are freed", PATIENCE)
        (free / "new").write_bytes(b"x")
        assert (free / "new").read_bytes() == b"x"
    finally:
        for agent in agents:
            agent.process.kill()
    (free / "new").unlink()
    wait_until(lambda: pool.holdings().resident_bytes == 0, "and these, once it is free", PATIENCE)
    assert os.listdir(stuck) == ["held"]
