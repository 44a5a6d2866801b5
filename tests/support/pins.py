"""Pins: a tenant's process has the kernel store into pages of a file that it neither has open nor maps any more.

It registers a mapping as a buffer of io_uring. That holds the pages themselves. READ_FIXED stores into them later on.
"""

from errno import ENOSYS, EPERM
from pathlib import Path

import pytest

from tests.support.tenants import Agent, AgentError, Tenant

STORED = 0xFF

# struct io_uring_params: ten words, then the offsets in the submission ring, then those in the completion ring.
_RING = """
import struct
libc = ctypes.CDLL(None, use_errno=True)
def checked(*arguments):
    done = libc.syscall(*arguments)
    if done < 0: raise OSError(ctypes.get_errno(), 'io_uring')
    return done
params = (ctypes.c_uint32 * 30)()
ring = checked(425, 8, params)
tail, mask, array, cqes = params[11], params[12], params[16], params[25]
queue = mmap.mmap(ring, array + 4 * params[0])
entries = mmap.mmap(ring, 64 * params[0], offset=0x10000000)
answers = mmap.mmap(ring, cqes + 16 * params[1], offset=0x8000000)
"""
_PIN = """
fd = os.open({path!r}, os.O_RDWR)
mapped = mmap.mmap(fd, {length})
address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
buffers = (ctypes.c_uint64 * 2)(address, {length})
checked(427, ring, 0, buffers, 1)
mapped.close(); os.close(fd)
"""
_STORE = """
source = os.open({source!r}, os.O_RDONLY)
entries[:64] = struct.pack('<BBHiQQIIQHH20x', 4, 0, 0, source, 0, address, {length}, 0, 0, 0, 0)
queue[array:array + 4] = bytes(4)
queue[tail:tail + 4] = struct.pack('<I', 1)
checked(426, ring, 1, 1, 1, None, 0)
os.close(source)
result = struct.unpack_from('<i', answers, cqes + 8)[0]
"""


class Pin:
    """The first `length` bytes of a file, pinned by an agent. Skips the test where it may not use io_uring."""

    def __init__(self, agent: Agent, path: Path, length: int) -> None:
        self._agent = agent
        self._length = length
        try:
            agent.do(_RING)
        except AgentError as error:
            if error.errno not in (ENOSYS, EPERM):
                raise
            pytest.skip("this kernel has no io_uring, or lets nobody use it")
        agent.do(_PIN.format(path=str(path), length=length))

    def store(self, source: Path) -> None:
        """Store STORED into each pinned byte; `source` is a file that is made for that."""
        source.write_bytes(bytes([STORED]) * self._length)
        assert self._agent.do(_STORE.format(source=str(source), length=self._length)) == self._length


def hold_in_pipes(tenant: Tenant, path: Path, size: int) -> None:
    """The tenant maps a file and has all of its pages in pipes, 64 KiB in each."""
    tenant.do(
        f"import ctypes, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\n"
        f"libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]\n"
        f"held = os.open('{path}', os.O_RDWR); m = mmap.mmap(held, {size})\n"
        f"address = ctypes.addressof(ctypes.c_char.from_buffer(m)); pipes = []\n"
        f"for start in range(0, {size}, 65536):\n"
        f"    pipes.append(os.pipe())\n"
        f"    part = (ctypes.c_size_t * 2)(address + start, 65536)\n"
        f"    assert libc.vmsplice(pipes[-1][1], part, 1, 2) == 65536, ctypes.get_errno()"
    )


UNMAP = "m.close(); os.close(held)"
"""After `hold_in_pipes`: from here on the pages are in pipes only, and in the file."""


def move_agent(agent: Agent, old: Tenant, new: Tenant) -> None:
    """The agent is the other tenant's from now on."""
    agent.do(f"open('{new.directory}/cgroup.procs', 'w').write(str(os.getpid()))")
    old.agents.remove(agent)
    new.agents.append(agent)


def stores_in(path: Path, length: int, page_bytes: int = 4096) -> int:
    """How many of the file's first pages have what `Pin.store` stores."""
    return path.read_bytes()[:length:page_bytes].count(STORED)
