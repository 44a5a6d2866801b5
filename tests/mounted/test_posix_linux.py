"""What Linux adds to POSIX: files without a name, times of birth, inode flags, handles, leases, inotify."""

import ctypes
import fcntl
import mmap
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from errno import EAGAIN, EINVAL, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, ESTALE, EXDEV
from pathlib import Path

import pytest

from tests.support.posix import (
    Child,
    as_user,
    birth_time,
    fails,
    file_handle,
    forget_everything,
    in_child,
    link_open_file,
    linkat,
    open_by_handle,
    opened,
    rename2,
)

NEW = os.O_RDWR | os.O_CREAT
NAMELESS = os.O_TMPFILE | os.O_RDWR
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
APPEND_ONLY, IMMUTABLE, NO_DUMP, NO_TIME, COMPRESS = 0x20, 0x10, 0x40, 0x80, 0x4
RENAME_WHITEOUT = 4


def flags_of(path: Path) -> int:
    with opened(path, os.O_RDONLY) as fd:
        return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little")


def set_flags(path: Path, flags: int) -> None:
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))


# -- files without a name --------------------------------------------------------------------------------------------


def test_a_file_without_a_name(place: Path) -> None:
    with opened(place, NAMELESS, 0o640) as fd:
        os.write(fd, b"content")
        found = os.fstat(fd)
        assert (found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)) == (0, 7, 0o640)
        assert os.listdir(place) == []
        with mmap.mmap(fd, 7) as mapped:
            assert mapped[:] == b"content"
        link_open_file(fd, place / "named")
        assert os.fstat(fd).st_nlink == 1
        os.write(fd, b", more")
        assert (place / "named").read_bytes() == b"content, more"
        assert (place / "named").stat().st_ino == found.st_ino
        os.link(place / "named", place / "again")
        os.unlink(place / "named")
        assert (place / "again").read_bytes() == b"content, more"


def test_a_file_without_a_name_gets_one_by_its_descriptor(place: Path) -> None:
    (place / "taken").write_bytes(b"")
    with opened(place, NAMELESS) as fd:
        with pytest.raises(FileExistsError):
            linkat(fd, place / "taken")
        linkat(fd, place / "named")
    assert (place / "named").stat().st_nlink == 1


def test_a_file_that_is_to_have_no_name_gets_none(place: Path) -> None:
    with opened(place, NAMELESS | os.O_EXCL) as fd:
        with fails(ENOENT):
            link_open_file(fd, place / "named")
        assert os.fstat(fd).st_nlink == 0
    with fails(EINVAL):
        os.open(place, os.O_TMPFILE | os.O_RDONLY)
    (place / "f").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        os.open(place / "f", NAMELESS)


def test_files_without_a_name_belong_to_their_maker_and_obey_the_directory(place: Path) -> None:
    (place / "d").mkdir()
    os.chown(place / "d", 0, 2000)
    (place / "d").chmod(0o2777)

    def make() -> tuple[int, int]:
        with opened(place / "d", NAMELESS) as fd:
            return os.fstat(fd).st_uid, os.fstat(fd).st_gid

    assert as_user(make) == (1000, 2000)
    (place / "d").chmod(0o755)
    with pytest.raises(PermissionError):
        as_user(make)


# -- statx, times ----------------------------------------------------------------------------------------------------


def test_the_time_of_birth_stays(place: Path) -> None:
    (place / "f").write_bytes(b"")
    born = birth_time(place / "f")
    assert born is not None
    assert abs(born - (place / "f").stat().st_ctime) < 1
    os.utime(place / "f", ns=(1, 2))
    (place / "f").chmod(0o600)
    os.rename(place / "f", place / "g")
    assert birth_time(place / "g") == born
    assert birth_time(place) is not None


def test_one_time_is_set_and_the_other_left(place: Path) -> None:
    (place / "f").write_bytes(b"")
    os.utime(place / "f", ns=(-5_000_000_001, 2_000_000_002))
    assert ((place / "f").stat().st_atime_ns, (place / "f").stat().st_mtime_ns) == (-5_000_000_001, 2_000_000_002)
    subprocess.run(["touch", "-a", "-d", "@3.000000003", place / "f"], check=True)
    assert ((place / "f").stat().st_atime_ns, (place / "f").stat().st_mtime_ns) == (3_000_000_003, 2_000_000_002)
    subprocess.run(["touch", "-m", place / "f"], check=True)
    assert (place / "f").stat().st_atime_ns == 3_000_000_003
    assert (place / "f").stat().st_mtime > 1e9
    (place / "s").symlink_to("f")
    os.utime(place / "s", ns=(7, 8), follow_symlinks=False)
    assert (os.lstat(place / "s").st_mtime_ns, (place / "f").stat().st_mtime_ns != 8) == (8, True)
    with pytest.raises(PermissionError):
        as_user(lambda: os.utime(place / "f", ns=(1, 1)))


# -- inode flags -----------------------------------------------------------------------------------------------------


@pytest.fixture
def flagged(place: Path) -> Iterator[Path]:
    """A file whose flags are taken away again, or nobody could remove it."""
    path = place / "f"
    path.write_bytes(b"content")
    yield path
    if path.exists():
        set_flags(path, 0)


def test_flags_are_kept(flagged: Path) -> None:
    assert flags_of(flagged) == 0
    set_flags(flagged, NO_DUMP | NO_TIME)
    assert flags_of(flagged) == NO_DUMP | NO_TIME
    with opened(flagged, os.O_RDONLY) as fd:
        xflags, *_ = struct.unpack("<IIIII8x", fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
        assert xflags == 0x80 | 0x40, "the same flags by their other names"
    with fails(EOPNOTSUPP):
        set_flags(flagged, COMPRESS)
    with fails(EPERM):
        as_user(lambda: set_flags(flagged, NO_DUMP))
    set_flags(flagged.parent, NO_DUMP)
    assert flags_of(flagged.parent) == NO_DUMP


def test_an_immutable_file_is_read_and_not_changed(flagged: Path) -> None:
    set_flags(flagged, IMMUTABLE)
    assert flagged.read_bytes() == b"content"
    with opened(flagged, os.O_RDONLY) as fd, mmap.mmap(fd, 7, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content"
    for change in (
        lambda: os.open(flagged, os.O_WRONLY),
        lambda: os.truncate(flagged, 0),
        lambda: os.chmod(flagged, 0o600),
        lambda: os.unlink(flagged),
        lambda: os.rename(flagged, flagged.with_name("g")),
        lambda: os.link(flagged, flagged.with_name("g")),
        lambda: os.setxattr(flagged, "user.a", b""),
    ):
        with fails(EPERM):
            change()
    set_flags(flagged, 0)
    flagged.write_bytes(b"changed")
    assert flagged.read_bytes() == b"changed"


def test_an_append_only_file_grows(flagged: Path) -> None:
    set_flags(flagged, APPEND_ONLY)
    with fails(EPERM):
        os.open(flagged, os.O_WRONLY)
    with fails(EPERM):
        os.open(flagged, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    with opened(flagged, os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"+")
        assert os.pread(fd, 100, 0) == b"content+"
    assert flagged.read_bytes() == b"content+"
    with fails(EPERM):
        os.unlink(flagged)


def test_who_had_a_file_open_keeps_its_access(flagged: Path) -> None:
    """Flags count when a file is opened."""
    for flags in (IMMUTABLE, APPEND_ONLY):
        with opened(flagged, os.O_RDWR) as writer:
            set_flags(flagged, flags)
            with opened(flagged, os.O_RDONLY) as reader:  # leaves a descriptor with less access, if anything does
                assert os.pread(reader, 1, 0)
            assert os.pwrite(writer, b"C", 0) == 1
            assert os.pread(writer, 7, 0) == b"Content"
            with opened(flagged.with_name("source"), NEW) as source:
                os.write(source, b"K")
                if flags == IMMUTABLE:
                    with fails(EPERM):
                        os.copy_file_range(source, writer, 1, 0, 0)
                else:
                    assert os.copy_file_range(source, writer, 1, 0, 0) == 1
                    assert os.pread(writer, 7, 0) == b"Kontent"
            if flags == IMMUTABLE:
                os.ftruncate(writer, 9)
                os.ftruncate(writer, 7)
                with fails(EPERM):
                    os.posix_fallocate(writer, 0, 1 << 16)
            else:
                with fails(EPERM):
                    os.ftruncate(writer, 9)
                os.posix_fallocate(writer, 0, 1 << 16)
            with fails(EPERM):
                os.truncate(flagged, 3)
            with fails(EPERM):
                os.open(flagged, os.O_WRONLY)
        set_flags(flagged, 0)
        flagged.write_bytes(b"content")


def test_flags_that_are_taken_away_leave_nothing(flagged: Path) -> None:
    """A reader that opened it meanwhile stays. A write through O_RDWR went to the end, or failed with EBADF."""
    for flags in (APPEND_ONLY, IMMUTABLE):
        set_flags(flagged, flags)
        with opened(flagged, os.O_RDONLY) as reader:
            assert os.pread(reader, 7, 0) == b"content"
            set_flags(flagged, 0)
            with opened(flagged, os.O_RDWR) as writer:
                os.pwrite(writer, b"Z", 0)
                assert os.pread(reader, 100, 0) == b"Zontent"
                os.ftruncate(writer, 3)
        flagged.write_bytes(b"content")
    set_flags(flagged, APPEND_ONLY)
    with opened(flagged, os.O_WRONLY | os.O_APPEND) as appender:
        os.write(appender, b"+")
        set_flags(flagged, 0)
        with opened(flagged, os.O_RDWR) as writer:
            os.pwrite(writer, b"Z", 0)
        os.write(appender, b"-")
    assert flagged.read_bytes() == b"Zontent+-"


def test_unknown_ioctls(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        for command in (0x5401, 0x80087601, 0xC0045878 + 5):
            with fails(ENOTTY):
                fcntl.ioctl(fd, command, bytearray(8))


# -- handles ---------------------------------------------------------------------------------------------------------


def test_handles_outlive_the_kernels_caches(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"content")
    (place / "gone").write_bytes(b"")
    handles = [file_handle(place / name) for name in ("d/f", "d", "gone")]
    os.unlink(place / "gone")
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as mount_fd:
        for _ in range(2):
            forget_everything()
            with open(open_by_handle(mount_fd, handles[0], os.O_RDWR), "rb+") as file:
                assert file.read() == b"content"
            fd = open_by_handle(mount_fd, handles[1], os.O_RDONLY | os.O_DIRECTORY)
            assert os.listdir(fd) == ["f"]
            assert os.stat("..", dir_fd=fd).st_ino == place.stat().st_ino
            os.close(fd)
            with fails(ESTALE):
                open_by_handle(mount_fd, handles[2], os.O_RDONLY)
        os.rename(place / "d" / "f", place / "moved")
        shutil.rmtree(place / "d")
        forget_everything()
        with open(open_by_handle(mount_fd, handles[0], os.O_RDONLY), "rb") as file:
            assert file.read() == b"content"
        with fails(ESTALE):
            open_by_handle(mount_fd, handles[1], os.O_RDONLY)


# -- renames, links --------------------------------------------------------------------------------------------------


def test_a_whiteout_takes_the_place(place: Path) -> None:
    (place / "f").write_bytes(b"content")
    rename2(place / "f", place / "g", RENAME_WHITEOUT)
    found = os.lstat(place / "f")
    assert (stat.S_ISCHR(found.st_mode), found.st_rdev) == (True, 0)
    assert (place / "g").read_bytes() == b"content"
    with fails(EINVAL):
        rename2(place / "g", place / "h", RENAME_WHITEOUT | 2)


def test_nothing_is_linked_or_renamed_to_another_filesystem(place: Path, tmp_path: Path) -> None:
    (place / "f").write_bytes(b"")
    with fails(EXDEV):
        os.link(place / "f", tmp_path / "f")
    with fails(EXDEV):
        os.rename(place / "f", tmp_path / "f")


def test_many_links(place: Path) -> None:
    (place / "f").write_bytes(b"")
    for number in range(1000):
        os.link(place / "f", place / f"{number}")
    assert (place / "f").stat().st_nlink == 1001
    for number in range(1000):
        os.unlink(place / f"{number}")
    assert (place / "f").stat().st_nlink == 1


def test_a_removed_directory_is_still_an_inode(place: Path) -> None:
    (place / "d").mkdir(0o755)
    (place / "e").mkdir()
    with opened(place / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.setxattr(fd, "user.a", b"1")
        os.rename(place / "e", place / "d")
        os.fchmod(fd, 0o700)
        os.utime(fd, ns=(1, 2))
        found = os.fstat(fd)
        assert (stat.S_IMODE(found.st_mode), found.st_nlink, found.st_mtime_ns) == (0o700, 0, 2)
        assert os.getxattr(fd, "user.a") == b"1"
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o755
    assert os.listdir(place) == ["d"]


# -- capabilities, locks, leases, notification -----------------------------------------------------------------------


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep


def test_file_capabilities_go_with_a_write(place: Path) -> None:

    def write() -> None:
        with opened(place / "f", os.O_WRONLY) as fd:
            os.write(fd, b"by root, too")

    for change in (
        write,
        lambda: os.truncate(place / "f", 1),
        lambda: os.chown(place / "f", 1000, 1000),
    ):
        (place / "f").write_bytes(b"x")
        os.setxattr(place / "f", "security.capability", CAPABILITY)
        assert os.getxattr(place / "f", "security.capability") == CAPABILITY
        change()
        assert "security.capability" not in os.listxattr(place / "f")
    with fails(EPERM):
        as_user(lambda: os.setxattr(place / "f", "security.capability", CAPABILITY))


def test_leases_are_given_and_broken(place: Path) -> None:
    (place / "f").write_bytes(b"")
    default = signal.signal(signal.SIGIO, signal.SIG_IGN)  # tells who has the lease, and would end us
    try:
        _lease(place / "f")
    finally:
        signal.signal(signal.SIGIO, default)


def _lease(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        with fails(EAGAIN):
            in_child(lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    with opened(path) as fd, opened(path), fails(EAGAIN):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def test_locks_of_open_file_descriptions(place: Path) -> None:
    set_lock = 37  # F_OFD_SETLK
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(place / "f", NEW) as fd, opened(place / "f") as other:
        fcntl.fcntl(fd, set_lock, lock)
        with fails(EAGAIN):
            fcntl.fcntl(other, set_lock, lock)


def test_changes_are_notified(place: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    create, modify, delete = 0x100, 0x2, 0x200
    with open(libc.inotify_init1(os.O_CLOEXEC), "rb", buffering=0) as events:
        assert libc.inotify_add_watch(events.fileno(), os.fsencode(place), create | modify | delete) > 0

        def change() -> None:
            (place / "f").write_bytes(b"x")
            os.unlink(place / "f")

        Child(change).result()
        seen = 0
        while not seen & delete:
            assert select.select([events], [], [], 5)[0]
            raw = events.read(4096)
            while raw:
                _, mask, _, length = struct.unpack_from("iIII", raw)
                seen |= mask
                raw = raw[16 + length :]
    assert seen == create | modify | delete


# -- memory ----------------------------------------------------------------------------------------------------------


def test_mappings_are_locked_populated_and_grown(place: Path) -> None:
    page = mmap.PAGESIZE
    with opened(place / "f", NEW) as fd:
        os.ftruncate(fd, 4 * page)
        with mmap.mmap(fd, page, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) as mapped:
            mapped[:4] = b"head"
            libc = ctypes.CDLL(None, use_errno=True)
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            assert libc.mlock(ctypes.c_void_p(address), page) == 0
            assert libc.munlock(ctypes.c_void_p(address), page) == 0
        with mmap.mmap(fd, page) as mapped:
            mapped.resize(4 * page)
            mapped[3 * page : 3 * page + 4] = b"tail"
        assert os.pread(fd, 4, 3 * page) == b"tail"
        assert os.pread(fd, 4, 0) == b"head"
