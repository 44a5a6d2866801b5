"""Transparent huge pages of a tmpfs file, made by us: through a mapping of our own, so that our cgroup is charged.

The tmpfs has huge=advise, which leaves it to us where huge pages are made. With huge=always or within_size the kernel's
khugepaged would make them of any small pages that a tenant has mapped, and charge that tenant's cgroup.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN
from pathlib import Path

from sharedfs.common.units import PAGE_BYTES

ALWAYS, WITHIN_SIZE, ADVISE, NEVER = HUGE = ("always", "within_size", "advise", "never")
"""Where huge pages are made, in tmpfs's words."""

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_PMD_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
_MADV_HUGEPAGE, _MADV_COLD, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 14, 20, 23, 25
_TRIES = 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


def page_bytes(size: Path = _PMD_SIZE) -> int | None:
    """The size of a huge page, a power of two; None where the kernel has none."""
    try:
        return int(size.read_text())
    except FileNotFoundError:
        return None


def are_denied(enabled: Path = SHMEM_ENABLED) -> bool:
    """Whether the administrator has turned off huge pages of all tmpfs mounts, whatever these ask for."""
    return "[deny]" in enabled.read_text()


def can_collapse() -> bool:
    """Whether this kernel makes huge pages of small ones in a tmpfs when it is asked to: `collapse`. Linux >= 6.1."""
    # An advice of no bytes does nothing, and is EINVAL where the kernel does not know it.
    return page_bytes() is not None and not are_denied() and _libc.madvise(None, 0, _MADV_COLLAPSE) == 0


def populate(fd: int, start: int, end: int, size: int) -> None:
    """Make the huge pages in bytes `start`..`end` of a file of `size` bytes, as far as they begin within it.

    Where no huge page is to be had the kernel takes small ones. Raises OSError (EFAULT) when the filesystem is full:
    some pages may have been made then. Linux >= 5.14.
    """
    with mapped(fd, start, end - start) as address:
        _advise(address, end - start, _MADV_HUGEPAGE)
        _advise(address, min(end, size) - start, _MADV_POPULATE_WRITE)


def collapse(fd: int, start: int, end: int, *, split: bool = False) -> None:
    """Make huge pages of the small ones in bytes `start`..`end`, multiples of a huge page. Linux >= 6.1.

    The kernel allocates them, so it charges them to us, copies, and lets nobody store in between: no store is lost.
    Holes are filled. A huge page that is there stays as it is, and whoever was charged for it.

    `split`: make small pages of them again, which stay charged to us. That takes MADV_COLD for a part of a mapping; the
    kernel heeds it unless another process has mapped the huge page already.

    Raises OSError where the kernel cannot just now: EAGAIN or EBUSY for pages that are held (in a pipe, by a device),
    ENOMEM where it has no memory, EINVAL where it does not do so at all.
    """
    with mapped(fd, start, end - start) as address:
        _advise(address, end - start, _MADV_COLLAPSE)
        if split:
            for place in range(address, address + end - start, page_bytes() or PAGE_BYTES):
                _advise(place, PAGE_BYTES, _MADV_COLD)


@contextmanager
def mapped(fd: int, start: int, length: int, *, read_only: bool = False) -> Iterator[int]:
    """Map a part of a file where huge pages can be: at an address that is a multiple of a huge page.

    The kernel itself aligns only mappings of a tmpfs that has huge pages, so the place is reserved first.
    """
    protection = _PROT_READ if read_only else _PROT_READ | _PROT_WRITE
    huge_bytes = page_bytes() or PAGE_BYTES
    reserved = _mmap(None, length + huge_bytes, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    try:
        address = -(-reserved // huge_bytes) * huge_bytes
        yield _mmap(address, length, protection, _MAP_SHARED | _MAP_FIXED, fd, start)
    finally:
        _libc.munmap(reserved, length + huge_bytes)


def _mmap(address: int | None, length: int, protection: int, flags: int, fd: int, start: int) -> int:
    place = _libc.mmap(address, length, protection, flags, fd, start)
    if place == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), f"mmap: {os.strerror(ctypes.get_errno())}")
    return int(place)


def _advise(address: int, length: int, advice: int) -> None:
    for _ in range(_TRIES):
        if _libc.madvise(address, length, advice) == 0:
            return
        if ctypes.get_errno() != EAGAIN:
            break
    raise OSError(ctypes.get_errno(), f"madvise {advice}: {os.strerror(ctypes.get_errno())}")
