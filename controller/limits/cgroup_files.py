"""A cgroup's files, for every version of the memory controller: careful reads and one careful write.

No I/O here except through `CgroupDirectory`, which holds a cgroup by a descriptor: what is read and written is the
group that was meant, also when its path meanwhile belongs to a later group of the same name.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY, ENODEV, ENOENT, ENOTDIR, EROFS
from typing import Protocol

from controller.limits.types import Limits, Order, Outcome, WriteFile
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy

GONE = frozenset({ENOENT, ENODEV, ENOTDIR})
"""What a removed cgroup answers: ENODEV when it went after we opened its file."""


class ManagedWriteFile(Protocol):
    """A `WriteFile` through a manager."""

    def __call__(self, descriptor: int, name: str, text: str) -> None: ...

    def confirm(self, descriptor: int, name: str, text: str) -> None:
        """This value is in the file: the manager is to keep it, where the cgroup is its own."""


def not_standing(hierarchy: MemoryHierarchy) -> str:
    return f"{hierarchy.mount}: no memory cgroups are mounted there any more: no limit is written until they are"


def write_file(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


class CgroupDirectory:
    """One cgroup held open."""

    def __init__(self, descriptor: int, path: str, write: WriteFile) -> None:
        self._descriptor = descriptor
        self._path = path
        self._write = write
        self.writes = 0

    def read(self, name: str) -> str | None:
        """The text of file `name`, None when the cgroup lacks it or is gone."""
        try:
            descriptor = os.open(name, os.O_RDONLY, dir_fd=self._descriptor)
            with open(descriptor, encoding="utf-8") as file:
                return file.read()
        except OSError as error:
            if error.errno in GONE:
                return None
            raise HostFault(f"{self._path}/{name}: {error.strerror}") from error

    def number(self, name: str) -> int | None:
        """The number in file `name`, None for "max" or when there is no such file."""
        text = self.read(name)
        if text is None or text.strip() == "max":
            return None
        try:
            return int(text)
        except ValueError:
            raise HostFault(f"{self._path}/{name}: {text!r} is not a number") from None

    def statistics(self, name: str) -> dict[str, int]:
        """The lines `KEY NUMBER` of file `name`, none when there is no such file."""
        text = self.read(name) or ""
        try:
            return {key: int(value) for key, value in (line.split() for line in text.splitlines())}
        except ValueError:
            raise HostFault(f"{self._path}/{name}: lines are not `KEY NUMBER`: {text!r}") from None

    def confirm(self, names: Iterable[str], tell: WriteFile) -> None:
        """Raises HostFault when the manager does not answer."""
        for name in names:
            if (text := self.read(name)) is not None:
                try:
                    tell(self._descriptor, name, text.strip())
                except OSError as error:
                    raise HostFault(f"{self._path}/{name}: {error.strerror}") from error

    def mark(self, name: str, value: bytes) -> None:
        """Set an xattr. One that cannot be set is removed: none is better than one that is out of date."""
        try:
            os.setxattr(self._descriptor, name, value)
        except OSError:
            self.unmark(name)

    def unmark(self, name: str) -> None:
        """Remove an xattr; one that is not there, or cannot be removed, is no error."""
        with suppress(OSError):
            os.removexattr(self._descriptor, name)

    def write(self, name: str, text: str) -> str | None:
        """None when done or gone, else why the kernel refused."""
        self.writes += 1
        try:
            self._write(self._descriptor, name, text)
        except OSError as error:
            if error.errno in GONE:
                return None
            if error.errno == EROFS:
                raise HostFault("the cgroup hierarchy is read-only: no limit is written until it is not") from error
            why = "the tenant uses more than that" if error.errno == EBUSY else error.strerror
            return f"{self._path}/{name}: cannot write {text}: {why}"
        return None


def carry_out(
    hierarchy: MemoryHierarchy,
    order: Order,
    write: WriteFile,
    read_limits: Callable[[CgroupDirectory], Limits],
    move: Callable[[CgroupDirectory, Limits, Limits], str | None],
) -> Outcome:
    """`KernelLimits.apply`: `move` the limits from those now to those intended, unless somebody else did since."""
    with open_cgroup(hierarchy, order.cgroup, write) as directory:
        if directory is None:
            return Outcome(None)
        now = read_limits(directory)
        refused = None
        if now == order.now != order.intended:
            refused = move(directory, now, order.intended)
            now = read_limits(directory)
        writes = directory.writes
    return Outcome(now if hierarchy.lives(order.cgroup) else None, refused, writes)


def confirm(
    hierarchy: MemoryHierarchy, cgroup: CgroupRef, write: WriteFile | ManagedWriteFile, names: Iterable[str]
) -> None:
    """`KernelLimits.confirm`: what is in these files now, told to the manager, if there is one."""
    tell = getattr(write, "confirm", None)
    if tell is None:
        return
    with open_cgroup(hierarchy, cgroup, write) as directory:
        if directory is not None:
            directory.confirm(names, tell)


@contextmanager
def open_cgroup(hierarchy: MemoryHierarchy, cgroup: CgroupRef, write: WriteFile) -> Iterator[CgroupDirectory | None]:
    """`cgroup` held open, also when it was renamed; None when it is gone. HostFault when all seem to be gone."""
    opened = _open(hierarchy, cgroup)
    if opened is None and (renamed := hierarchy.now(cgroup)) is not None:
        opened = _open(hierarchy, renamed)
    if opened is None:
        if not hierarchy.stands():
            raise HostFault(not_standing(hierarchy))
        yield None
        return
    try:
        yield CgroupDirectory(*opened, write)
    finally:
        os.close(opened[0])


def _open(hierarchy: MemoryHierarchy, cgroup: CgroupRef) -> tuple[int, str] | None:
    """A descriptor of the directory at the path of `cgroup`, and that directory; None when it is not there."""
    path = str(hierarchy.directory(cgroup.path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in GONE:
            raise HostFault(f"{path}: {error.strerror}") from error
        return None
    if os.fstat(descriptor).st_ino == cgroup.inode:
        return descriptor, path
    os.close(descriptor)
    return None
