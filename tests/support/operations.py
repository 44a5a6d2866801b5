"""Operations for the test that kills the daemon in each of them: how it begins, what it does, and what is true then."""

import mmap
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sharedfs.fuse.protocol import Opcode
from sharedfs.linux import syscalls
from sharedfs.storage.fault_injection import Point
from tests.support.faults import Armed
from tests.support.posix import opened

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT
MIB = 1 << 20
LARGE = 24 * MIB  # what is freed in pieces
JOURNALLED = (Point.TAKEN, Point.INTENDED, Point.DONE, Point.COMMITTED, Point.ANSWERED)
UNINTENDED = (Point.TAKEN, Point.DONE, Point.COMMITTED, Point.ANSWERED)


@dataclass
class Place:
    """A directory of the mount, and descriptors that are closed at the end of a test."""

    armed: Armed
    path: Path
    fd: int
    held: ExitStack = field(default_factory=ExitStack)

    def hold(self, name: str, flags: int = os.O_RDWR) -> int:
        return self.held.enter_context(opened(self.path / name, flags))

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@dataclass(frozen=True)
class Operation:
    """`act` is hit by the kill; what it returns goes to `check` with the place as it is afterwards."""

    opcode: Opcode
    act: Callable[[Place], object]
    check: Callable[[Place, object], None]
    prepare: Callable[[Place], object] = lambda place: None
    points: tuple[Point, ...] = JOURNALLED


def truth(holds: object) -> None:
    assert holds


def content(name: str) -> Callable[[Place], object]:
    return lambda place: (place.path / name).write_bytes(name.encode() * 100)


def large(name: str) -> Callable[[Place], object]:
    return lambda place: (place.path / name).write_bytes(b"x" * LARGE)


def both(place: Place) -> None:
    content("a")(place)
    content("b")(place)


def replaced(place: Place) -> int:
    both(place)
    return place.hold("b")


def check_rename_over(place: Place, result: object) -> None:
    assert place.names() == ["b"]
    assert (place.path / "b").read_bytes() == b"a" * 100


def rename2(flags: int) -> Callable[[Place], object]:
    return lambda place: syscalls.rename(place.fd, b"a", place.fd, b"b", flags)


def check_exchange(place: Place, result: object) -> None:
    assert (place.path / "a").read_bytes() == b"b" * 100
    assert (place.path / "b").read_bytes() == b"a" * 100


def unlink_open(place: Place) -> object:
    content("a")(place)
    return place.hold("a")


def link_nameless(place: Place) -> object:
    fd = place.held.enter_context(opened(place.path, os.O_TMPFILE | os.O_RDWR))
    os.write(fd, b"nameless")
    os.link(f"/proc/self/fd/{fd}", "a", dst_dir_fd=place.fd, follow_symlinks=True)
    return fd


def create_exclusively(place: Place) -> object:
    fd = place.hold("a", NEW | os.O_EXCL)
    os.write(fd, b"made")
    with mmap.mmap(fd, 4) as mapping:
        return bytes(mapping)


def directory_full(place: Place) -> object:
    (place.path / "d").mkdir()
    (place.path / "d" / "f").write_bytes(b"x")
    return (place.path / "d" / "f").unlink()


def drop_many(place: Place) -> object:
    """The kernel forgets a hundred inodes at once: files without a name, held by O_PATH descriptors alone."""
    names = [f"f{number}" for number in range(100)]
    for name in names:
        (place.path / name).write_bytes(b"x")
    descriptors = []
    for name in names:
        descriptors.append(os.open(place.path / name, os.O_PATH))
        os.unlink(place.path / name)
    with place.armed.stopped():  # or it would forget one after the other
        for descriptor in descriptors:
            os.close(descriptor)
    return None


def get_all(place: Place) -> object:
    fd = os.open(place.path / "f", os.O_RDONLY)
    try:
        return os.pread(fd, 10, 0)
    finally:
        os.close(fd)


def read_whole(opcode: Opcode) -> Operation:
    """One of the requests that a reader of a file makes."""
    return Operation(opcode, get_all, lambda place, read: truth(read == b"f" * 10), content("f"), points=UNINTENDED)


OPERATIONS = {
    "create": Operation(Opcode.CREATE, create_exclusively, lambda place, result: truth(result == b"made")),
    "mkdir": Operation(
        Opcode.MKDIR,
        lambda place: os.mkdir("d", 0o750, dir_fd=place.fd),
        lambda place, _: truth(stat.S_IMODE((place.path / "d").stat().st_mode) == 0o750),
    ),
    "mknod": Operation(
        Opcode.MKNOD,
        lambda place: os.mkfifo(place.path / "a"),
        lambda place, _: truth((place.path / "a").is_fifo()),
    ),
    "symlink": Operation(
        Opcode.SYMLINK,
        lambda place: os.symlink("t" * 2000, place.path / "a"),
        lambda place, _: truth(os.readlink(place.path / "a") == "t" * 2000),
    ),
    "link": Operation(
        Opcode.LINK,
        lambda place: os.link(place.path / "a", place.path / "b"),
        lambda place, _: truth((place.path / "a").stat().st_nlink == 2),
        content("a"),
    ),
    "link-nameless": Operation(
        Opcode.LINK,
        link_nameless,
        lambda place, _: truth((place.path / "a").read_bytes() == b"nameless"),
    ),
    "tmpfile": Operation(
        Opcode.TMPFILE,
        lambda place: os.write(place.held.enter_context(opened(place.path, os.O_TMPFILE | os.O_RDWR)), b"x"),
        lambda place, written: truth(written == 1 and place.names() == []),
        points=UNINTENDED,
    ),
    "unlink": Operation(
        Opcode.UNLINK,
        lambda place: os.unlink("a", dir_fd=place.fd),
        lambda place, _: truth(place.names() == []),
        content("a"),
    ),
    "unlink-open": Operation(
        Opcode.UNLINK,
        lambda place: os.unlink("a", dir_fd=place.fd),
        lambda place, _: truth(place.names() == []),
        unlink_open,
    ),
    "unlink-one-of-two": Operation(
        Opcode.UNLINK,
        lambda place: os.unlink("b", dir_fd=place.fd),
        lambda place, _: truth((place.path / "a").stat().st_nlink == 1 and place.names() == ["a"]),
        lambda place: (content("a")(place), os.link(place.path / "a", place.path / "b")),
    ),
    "rmdir": Operation(
        Opcode.RMDIR,
        lambda place: os.rmdir("d", dir_fd=place.fd),
        lambda place, _: truth(place.names() == []),
        lambda place: (place.path / "d").mkdir(),
    ),
    "rename": Operation(
        Opcode.RENAME,
        lambda place: os.rename(place.path / "a", place.path / "b"),
        check_rename_over,
        content("a"),
    ),
    "rename-over": Operation(
        Opcode.RENAME, lambda place: os.rename(place.path / "a", place.path / "b"), check_rename_over, both
    ),
    "rename-over-open": Operation(
        Opcode.RENAME, lambda place: os.rename(place.path / "a", place.path / "b"), check_rename_over, replaced
    ),
    "rename-over-directory": Operation(
        Opcode.RENAME,
        lambda place: os.rename(place.path / "a", place.path / "b"),
        lambda place, _: truth(place.names() == ["b"] and (place.path / "b" / "f").exists()),
        lambda place: (
            (place.path / "a").mkdir(),
            (place.path / "a" / "f").touch(),
            (place.path / "b").mkdir(),
            place.hold("b", os.O_RDONLY),
        ),
    ),
    "exchange": Operation(Opcode.RENAME2, rename2(syscalls.RENAME_EXCHANGE), check_exchange, both),
    "rename-noreplace": Operation(Opcode.RENAME2, rename2(syscalls.RENAME_NOREPLACE), check_rename_over, content("a")),
    "xattr-create": Operation(
        Opcode.SETXATTR,
        lambda place: os.setxattr(place.path / "a", "user.x", b"1", os.XATTR_CREATE),
        lambda place, _: truth(os.getxattr(place.path / "a", "user.x") == b"1"),
        content("a"),
    ),
    "xattr-replace": Operation(
        Opcode.SETXATTR,
        lambda place: os.setxattr(place.path / "a", "user.x", b"2", os.XATTR_REPLACE),
        lambda place, _: truth(os.getxattr(place.path / "a", "user.x") == b"2"),
        lambda place: (content("a")(place), os.setxattr(place.path / "a", "user.x", b"1")),
        points=(Point.TAKEN,),
    ),
    "xattr-remove": Operation(
        Opcode.REMOVEXATTR,
        lambda place: os.removexattr(place.path / "a", "user.x"),
        lambda place, _: truth(os.listxattr(place.path / "a") == []),
        lambda place: (content("a")(place), os.setxattr(place.path / "a", "user.x", b"1")),
    ),
    "truncate": Operation(
        Opcode.SETATTR,
        lambda place: os.truncate(place.path / "a", 10),
        lambda place, _: truth((place.path / "a").read_bytes() == b"a" * 10),
        content("a"),
        points=UNINTENDED,
    ),
    "truncate-slowly": Operation(
        Opcode.SETATTR,
        lambda place: os.truncate(place.path / "a", 10),
        lambda place, _: truth((place.path / "a").read_bytes() == b"x" * 10),
        large("a"),
        points=(*JOURNALLED[:2], Point.HALFWAY, *JOURNALLED[2:]),
    ),
    "forget-large": Operation(
        Opcode.FORGET,
        lambda place: (place.path / "a").unlink(),
        lambda place, _: truth(place.names() == []),
        large("a"),
        points=(Point.TAKEN, Point.INTENDED, Point.HALFWAY, Point.DONE, Point.COMMITTED),
    ),
    "extend": Operation(
        Opcode.SETATTR,
        lambda place: os.truncate(place.path / "a", 20 * PAGE),
        lambda place, _: truth((place.path / "a").stat().st_blocks * 512 == 20 * PAGE),
        content("a"),
    ),
    "extend-slowly": Operation(
        Opcode.SETATTR,
        lambda place: os.truncate(place.path / "a", 20 << 20),
        lambda place, _: truth((place.path / "a").stat().st_blocks * 512 == 20 << 20),
        content("a"),
    ),
    "lookup": Operation(
        Opcode.LOOKUP,
        lambda place: place.path.joinpath("f").stat().st_size,
        lambda place, size: truth(size == 0),
        lambda place: (place.armed.store / "tree" / "d" / "f").touch(),  # behind the kernel's back: it has to ask
        points=UNINTENDED,
    ),
    "open": read_whole(Opcode.OPEN),
    "release": read_whole(Opcode.RELEASE),
    "readdirplus": Operation(
        Opcode.READDIRPLUS,
        lambda place: place.names(),
        lambda place, names: truth(names == [f"f{number:02}" for number in range(50)]),
        lambda place: [(place.path / f"f{number:02}").touch() for number in range(50)],
        points=UNINTENDED,
    ),
    "forget": Operation(
        Opcode.FORGET,
        directory_full,
        lambda place, _: truth(place.names() == ["d"]),
        points=(Point.TAKEN, Point.INTENDED, Point.HALFWAY, Point.DONE, Point.COMMITTED),
    ),
    "forget-many": Operation(
        Opcode.BATCH_FORGET,
        drop_many,
        lambda place, _: truth(place.names() == []),
        points=(Point.TAKEN, Point.INTENDED, Point.HALFWAY, Point.DONE, Point.COMMITTED),
    ),
}
