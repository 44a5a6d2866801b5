"""Each mapping of a file that is made on the host, as the kernel records it: what no look at processes would see.

A software event that counts nothing (PERF_COUNT_SW_DUMMY) has the kernel write a record of each mapping that is made
into a perf ring of the CPU (perf_event_open(2), `mmap_data` and `mmap2`): process, file and range. All processes' are
recorded, of whatever they map. So the text of a ring is searched for the device, and nothing else is taken apart.

Needs CAP_PERFMON, and CAP_IPC_LOCK for the memory of the rings.
"""

import mmap
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from select import EPOLLIN, epoll
from typing import NamedTuple

from sharedfs.common.errors import HostFault
from sharedfs.common.units import PAGE_BYTES
from sharedfs.linux import syscalls
from sharedfs.linux.perf_events import DATA_HEAD, DATA_TAIL, online_cpus

RING_BYTES = 512 << 10
"""Of a CPU: some 5,000 records."""

# perf_event_attr, its fifth version (112 bytes), as far as it is not 0: type, size, config, sample_period, sample_type,
# read_format, flags, wakeup_watermark
_ATTR = struct.Struct("<IIQQQQQI")
_ATTR_BYTES = 112
_TYPE_SOFTWARE, _SW_DUMMY = 1, 9
_WATERMARK, _MMAP_DATA, _MMAP2 = 1 << 14, 1 << 17, 1 << 23
# struct perf_event_header, then pid, tid, addr, len, pgoff (in bytes), maj, min, ino
_RECORD = struct.Struct("<IHHIIQQQIIQ")
_DEVICE, _DEVICE_OFFSET = struct.Struct("<II"), 40
_RECORD_MMAP2 = 10
_LONGEST_RECORD_BYTES = 8 << 10  # with a path


class NewMapping(NamedTuple):
    """Made by a thread of a process; pages of the file, inclusive."""

    process_id: int
    thread_id: int
    inode: int
    first_page: int
    last_page: int


class MappingEvents:
    """Of files on `devices` (major, minor). Raises HostFault where the kernel or our rights lack something.

    One thread at a time.
    """

    def __init__(self, devices: Collection[tuple[int, int]]) -> None:
        self._marks = [_DEVICE.pack(*device) for device in devices]
        self._resources = ExitStack()
        self._poll = epoll()
        self._resources.callback(self._poll.close)
        try:
            self._rings = [self._ring(cpu) for cpu in online_cpus()]
        except OSError as error:
            self._resources.close()
            raise HostFault(f"perf events of mappings: {error.strerror}") from error

    def wait(self, seconds: float) -> None:
        """So long, or until a ring is half full."""
        self._poll.poll(seconds)

    def take(self) -> tuple[list[NewMapping], bool]:
        """What was mapped since the last call, and whether some records were lost: nobody took them in time."""
        found, is_lost = list[NewMapping](), False
        for ring in self._rings:
            text = _taken(ring)
            if text:
                found += self._mappings_in(text)
                is_lost |= len(text) + _LONGEST_RECORD_BYTES > RING_BYTES
        return found, is_lost

    def close(self) -> None:
        self._resources.close()

    def _mappings_in(self, text: bytes) -> Iterator[NewMapping]:
        for mark in self._marks:
            at = text.find(mark)
            while at >= 0:
                start = at - _DEVICE_OFFSET
                if start >= 0 and start % 8 == 0 and start + _RECORD.size <= len(text):
                    kind, _, size, process, thread, _, length, offset, _, _, inode = _RECORD.unpack_from(text, start)
                    if kind == _RECORD_MMAP2 and size >= _RECORD.size and size % 8 == 0 and inode and length:
                        last_page = (offset + length - 1) // PAGE_BYTES
                        yield NewMapping(process, thread, inode, offset // PAGE_BYTES, last_page)
                at = text.find(mark, at + 1)

    def _ring(self, cpu: int) -> mmap.mmap:
        flags = _WATERMARK | _MMAP_DATA | _MMAP2
        attr = _ATTR.pack(_TYPE_SOFTWARE, _ATTR_BYTES, _SW_DUMMY, 0, 0, 0, flags, RING_BYTES // 2)
        fd = syscalls.perf_event_open(attr.ljust(_ATTR_BYTES, b"\0"), cpu)
        self._resources.callback(os.close, fd)
        ring = mmap.mmap(fd, mmap.PAGESIZE + RING_BYTES)
        self._resources.callback(ring.close)
        self._poll.register(fd, EPOLLIN)
        return ring


def _taken(ring: mmap.mmap) -> bytes:
    """The text of the records that are in a ring; there is room for others then."""
    head, tail = int.from_bytes(ring[DATA_HEAD], "little"), int.from_bytes(ring[DATA_TAIL], "little")
    if head == tail:
        return b""
    start, end = mmap.PAGESIZE + tail % RING_BYTES, mmap.PAGESIZE + head % RING_BYTES
    text = ring[start:end] if start < end else ring[start:] + ring[mmap.PAGESIZE : end]
    ring[DATA_TAIL] = head.to_bytes(8, "little")
    return text
