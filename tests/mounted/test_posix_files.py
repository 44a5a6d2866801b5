"""Regular files: what holds on tmpfs holds on the mount. Data, sizes, holes, open flags, files without a name."""

import os
from errno import EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO
from pathlib import Path

import pytest

from tests.support.posix import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    Child,
    as_user,
    fails,
    fallocate,
    in_child,
    opened,
    syncfs,
)

PAGE = 4096
MIB = 1 << 20
NEW = os.O_RDWR | os.O_CREAT


def test_what_was_written_is_read(place: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    (place / "f").write_bytes(data)
    assert (place / "f").read_bytes() == data
    found = (place / "f").stat()
    assert (found.st_size, found.st_nlink) == (len(data), 1)
    assert found.st_blocks * 512 == 3 * MIB + PAGE
    assert in_child(lambda: (place / "f").read_bytes() == data)


def test_offsets_that_straddle_pages(place: Path) -> None:
    expected = bytearray(5 * PAGE)
    with opened(place / "f", NEW) as fd:
        os.ftruncate(fd, len(expected))
        for offset, length in ((0, 1), (PAGE - 1, 2), (PAGE + 5, PAGE), (3 * PAGE - 7, 14), (5 * PAGE - 1, 1)):
            part = os.urandom(length)
            assert os.pwrite(fd, part, offset) == length
            expected[offset : offset + length] = part
        assert os.pread(fd, 9 * PAGE, 0) == expected
        assert os.pread(fd, 10, 5 * PAGE - 3) == expected[-3:]
        assert os.pread(fd, 10, 5 * PAGE) == b""
        assert os.pwritev(fd, [b"ab", b"cd", b"ef"], 100) == 6
        parts = [bytearray(3), bytearray(3)]
        assert os.preadv(fd, parts, 100) == 6
        assert parts == [b"abc", b"def"]


def test_the_offset_moves_and_seeks(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.write(fd, b"0123456789")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10
        assert os.lseek(fd, -4, os.SEEK_END) == 6
        assert os.read(fd, 2) == b"67"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 8
        with fails(EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)


def test_truncate(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.write(fd, b"x" * (2 * PAGE))
        os.ftruncate(fd, PAGE + 10)
        assert os.fstat(fd).st_size == PAGE + 10
        os.ftruncate(fd, 2 * PAGE)
        assert os.pread(fd, PAGE, PAGE) == b"x" * 10 + bytes(PAGE - 10), "what was cut off comes back as zeros"
        os.truncate(place / "f", 3)
        assert os.pread(fd, PAGE, 0) == b"xxx"
        os.ftruncate(fd, 0)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (0, 0)
    with opened(place / "f", os.O_RDONLY) as fd, fails(EINVAL):
        os.ftruncate(fd, 1)


def test_holes(place: Path) -> None:
    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as fd:  # else the pool fills what can be mapped
        os.pwrite(fd, b"a", 10 * PAGE)
        os.pwrite(fd, b"b", 1000 * PAGE + 5)
    with opened(place / "f") as fd:
        found = os.fstat(fd)
        assert (found.st_size, found.st_blocks * 512) == (1000 * PAGE + 6, 2 * PAGE)
        assert os.pread(fd, 2 * PAGE, 9 * PAGE) == bytes(PAGE) + b"a" + bytes(PAGE - 1)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 10 * PAGE
        assert os.lseek(fd, 10 * PAGE, os.SEEK_HOLE) == 11 * PAGE
        assert os.lseek(fd, 11 * PAGE, os.SEEK_DATA) == 1000 * PAGE
        assert os.lseek(fd, 1000 * PAGE, os.SEEK_HOLE) == 1000 * PAGE + 6
        for offset in (1000 * PAGE + 6, 1 << 40, -1, -(1 << 62)):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                with fails(ENXIO):
                    os.lseek(fd, offset, whence)
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 10 * PAGE, PAGE)
        assert os.fstat(fd).st_blocks * 512 == PAGE
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1000 * PAGE


def test_offsets_near_the_end_of_the_world(place: Path) -> None:
    far = (1 << 63) - 2 * PAGE
    with opened(place / "f", NEW) as fd:
        assert os.pwrite(fd, b"far", far) == 3
        assert os.fstat(fd).st_size == far + 3
        assert os.pread(fd, 10, far) == b"far"
        assert os.pread(fd, 10, far - 5) == bytes(5) + b"far"
        assert os.lseek(fd, 0, os.SEEK_DATA) == far
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, PAGE, far)
        assert os.fstat(fd).st_blocks == 0
        os.ftruncate(fd, (1 << 63) - 1)
        assert os.pread(fd, 2, (1 << 63) - 3) == bytes(2)
        os.ftruncate(fd, 0)


def test_allocation(place: Path) -> None:
    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as fd:  # nobody can map it: what lies before stays a hole
        os.posix_fallocate(fd, PAGE, 3 * PAGE)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks * 512) == (4 * PAGE, 3 * PAGE)
        fallocate(fd, FALLOC_KEEP_SIZE, 8 * PAGE, PAGE)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks * 512) == (4 * PAGE, 4 * PAGE)
        for mode in (0x8, 0x10, 0x20, 0x40):  # collapse, zero, insert, unshare: tmpfs has none of them
            with pytest.raises(OSError, match="not supported"):
                fallocate(fd, mode, 0, PAGE)


def test_appending(place: Path) -> None:
    (place / "f").write_bytes(b"start")
    with opened(place / "f", os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"+")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 6
        os.pwrite(fd, b"!", 0)  # Linux appends all the same: pwrite(2), BUGS
    assert (place / "f").read_bytes() == b"start+!"


def test_several_processes_append_without_losing_a_line(place: Path) -> None:
    def append(writer: int) -> None:
        with opened(place / "log", NEW | os.O_APPEND) as fd:
            for number in range(200):
                os.write(fd, f"{writer} {number} {'x' * (37 * writer)}\n".encode())

    children = [Child(lambda writer=writer: append(writer)) for writer in range(10)]
    for child in children:
        child.result()
    lines = (place / "log").read_text().splitlines()
    assert len(lines) == 2000
    for writer in range(10):
        mine = [line for line in lines if line.startswith(f"{writer} ")]
        assert mine == [f"{writer} {number} {'x' * (37 * writer)}" for number in range(200)]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (os.O_RDONLY, ENOENT),
        (os.O_RDWR | os.O_TRUNC, ENOENT),
        (os.O_CREAT | os.O_DIRECTORY, EINVAL),
    ],
)
def test_opening_what_is_not_there(place: Path, flags: int, error: int) -> None:
    for _ in range(2):  # the second time out of the kernel's memory of what is not there
        with fails(error):
            os.open(place / "missing", flags)
    with opened(place / "missing", NEW):
        pass
    (place / "missing").stat()


def test_open_flags(place: Path) -> None:
    (place / "f").write_bytes(b"content")
    (place / "d").mkdir()
    (place / "link").symlink_to("f")
    (place / "loop").symlink_to("loop")
    with fails(EEXIST):
        os.open(place / "f", NEW | os.O_EXCL)
    with fails(EEXIST):
        os.open(place / "link", NEW | os.O_EXCL)
    with fails(ENOTDIR):
        os.open(place / "f", os.O_RDONLY | os.O_DIRECTORY)
    with fails(ELOOP):
        os.open(place / "link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(ELOOP):
        os.open(place / "loop", os.O_RDONLY)
    with fails(EISDIR):
        os.open(place / "d", os.O_RDWR)
    with fails(ENOTDIR):
        os.open(place / "f" / "below", os.O_RDONLY)
    with opened(place / "f", os.O_RDONLY) as fd, fails(EBADF):
        os.write(fd, b"x")
    with opened(place / "d", os.O_RDONLY) as fd, fails(EISDIR):
        os.read(fd, 1)
    with opened(place / "f", os.O_PATH) as fd, opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as reopened:
        assert os.read(reopened, 10) == b"content"
    with opened(place / "f", os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
    assert (place / "f").stat().st_blocks == 0


def test_a_file_that_was_made_read_only_can_be_written_by_its_maker(place: Path) -> None:
    def make() -> bytes:
        with opened(place / "f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o400) as fd:
            os.write(fd, b"once")
            return os.pread(fd, 10, 0)

    assert as_user(make) == b"once"
    with pytest.raises(PermissionError):
        as_user(lambda: os.open(place / "f", os.O_WRONLY))


def test_an_unlinked_file_lives_on_while_it_is_open(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.write(fd, b"before")
        os.unlink(place / "f")
        assert not (place / "f").exists()
        assert os.listdir(place) == []
        assert os.pread(fd, 10, 0) == b"before"
        os.pwrite(fd, b"AFTER", 0)
        os.ftruncate(fd, 100)
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(1, 2))
        found = os.fstat(fd)
        assert (found.st_nlink, found.st_size, found.st_mode & 0o7777) == (0, 100, 0o640)
        assert (found.st_atime_ns, found.st_mtime_ns) == (1, 2)
        assert os.pread(fd, 6, 0) == b"AFTERe"
        with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as again:
            assert os.read(again, 5) == b"AFTER"
        (place / "f").write_bytes(b"another file of that name")
        assert os.pread(fd, 5, 0) == b"AFTER"
        assert os.fstat(fd).st_ino != (place / "f").stat().st_ino
        with pytest.raises(FileNotFoundError):
            os.link(f"/proc/self/fd/{fd}", place / "revived", src_dir_fd=fd, follow_symlinks=True)


def test_syncing_succeeds(place: Path) -> None:
    with opened(place / "f", NEW) as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        syncfs(fd)
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def test_copy_file_range(place: Path) -> None:
    data = os.urandom(20 * MIB + 5)
    (place / "source").write_bytes(data)
    with opened(place / "source", os.O_RDONLY) as source, opened(place / "target", NEW) as target:
        done = 0
        while copied := os.copy_file_range(source, target, len(data) - done + 100):
            done += copied
        assert done == len(data)
        assert os.copy_file_range(source, target, 10, 5, 0) == 10
        with fails(EINVAL):
            os.copy_file_range(target, target, 100, 0, 50)
    assert (place / "target").read_bytes() == data[5:15] + data[10:]
