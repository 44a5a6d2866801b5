"""Names: directories, links, renames and listings behave on the mount as on tmpfs."""

import os
import stat
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from pathlib import Path

import pytest

from tests.support.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, fails, opened, rename2


def test_directories(place: Path) -> None:
    (place / "d").mkdir(0o750)
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    assert ((place / "d").stat().st_nlink, place.stat().st_nlink) == (2, 3)
    (place / "d" / "e").mkdir()
    (place / "d" / "f").write_bytes(b"")
    assert (place / "d").stat().st_nlink == 3
    with fails(ENOTEMPTY):
        (place / "d").rmdir()
    with fails(EEXIST):
        (place / "d").mkdir()
    (place / "d" / "f").unlink()
    (place / "d" / "e").rmdir()
    (place / "d").rmdir()
    assert place.stat().st_nlink == 2
    assert os.listdir(place) == []


def test_a_change_in_a_directory_changes_its_times(place: Path) -> None:
    for change in (
        lambda: (place / "f").write_bytes(b""),
        lambda: os.link(place / "f", place / "g"),
        lambda: (place / "f").rename(place / "h"),
        (place / "h").unlink,
        (place / "d").mkdir,
        (place / "d").rmdir,
        lambda: (place / "s").symlink_to("g"),
    ):
        os.utime(place, ns=(1, 1))
        change()
        assert place.stat().st_mtime_ns > 1


def test_wrong_types(place: Path) -> None:
    (place / "d").mkdir()
    (place / "f").write_bytes(b"")
    with fails(EISDIR):
        os.unlink(place / "d")
    with fails(ENOTDIR):
        os.rmdir(place / "f")
    with fails(ENOTDIR):
        (place / "f" / "below").stat()
    with fails(ENOTDIR):
        os.listdir(place / "f")
    with fails(EINVAL):
        os.readlink(place / "f")
    with fails(EPERM):
        os.link(place / "d", place / "e")
    with fails(EINVAL):
        os.rmdir(f"{place}/d/.")
    with fails(ENOTEMPTY):
        os.rmdir(f"{place}/d/..")
    with fails(ENOENT):
        (place / "missing" / "below").stat()


@pytest.mark.parametrize("length", [1, 10, 127, 128, 129, 500, 4095])
def test_symlinks(place: Path, length: int) -> None:
    target = ("t" * 200 + "/") * 20 + "t" * 100
    (place / "link").symlink_to(target[:length])
    assert os.readlink(place / "link") == target[:length]
    found = (place / "link").lstat()
    assert (stat.S_ISLNK(found.st_mode), found.st_size, found.st_nlink) == (True, length, 1)
    os.rename(place / "link", place / "moved")
    assert os.readlink(place / "moved") == target[:length]
    os.link(place / "moved", place / "second", follow_symlinks=False)
    assert (place / "moved").lstat().st_nlink == 2
    os.unlink(place / "moved")
    assert os.readlink(place / "second") == target[:length]
    with fails(EEXIST):
        (place / "second").symlink_to("x")


def test_symlinks_are_followed(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"content")
    (place / "to-d").symlink_to("d")
    (place / "to-f").symlink_to(place / "to-d" / "f")
    assert (place / "to-f").read_bytes() == b"content"
    assert os.path.realpath(place / "to-f") == str(place / "d" / "f")
    (place / "dangling").symlink_to("made")
    (place / "dangling").write_bytes(b"through")
    assert (place / "made").read_bytes() == b"through"
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with fails(ELOOP):
        (place / "a").stat()


def test_hard_links(place: Path) -> None:
    (place / "a").write_bytes(b"one")
    os.link(place / "a", place / "b")
    assert (place / "a").stat().st_ino == (place / "b").stat().st_ino
    assert [(place / name).stat().st_nlink for name in "ab"] == [2, 2]
    (place / "b").write_bytes(b"two")
    assert (place / "a").read_bytes() == b"two"
    with fails(EEXIST):
        os.link(place / "a", place / "b")
    with opened(place / "a") as fd:
        (place / "a").unlink()
        assert os.fstat(fd).st_nlink == 1
        (place / "b").unlink()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 9, 0) == b"two"


def test_rename(place: Path) -> None:
    (place / "a").write_bytes(b"a")
    (place / "d").mkdir()
    inode = (place / "a").stat().st_ino
    (place / "a").rename(place / "d" / "b")
    assert ((place / "d" / "b").stat().st_ino, (place / "d" / "b").read_bytes()) == (inode, b"a")
    assert not (place / "a").exists()
    (place / "d").rename(place / "e")
    assert (place / "e" / "b").read_bytes() == b"a"
    with fails(ENOENT):
        os.rename(place / "a", place / "x")
    assert os.listdir(place) == ["e"]


def test_rename_over_a_file(place: Path) -> None:
    (place / "new").write_bytes(b"new")
    (place / "old").write_bytes(b"old")
    (place / "empty").mkdir()
    with opened(place / "old") as fd:
        os.rename(place / "new", place / "old")
        assert (place / "old").read_bytes() == b"new"
        assert os.pread(fd, 9, 0) == b"old", "who has the old one open still reads it"
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"changed", 0)
        assert os.pread(fd, 9, 0) == b"changed"
        assert (place / "old").read_bytes() == b"new"
    with fails(EISDIR):
        os.rename(place / "old", place / "empty")
    with fails(ENOTDIR):
        os.rename(place / "empty", place / "old")
    assert sorted(os.listdir(place)) == ["empty", "old"]
    assert (place / "old").read_bytes() == b"new"


def test_rename_over_a_file_with_another_name(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    os.link(place / "old", place / "other")
    (place / "new").write_bytes(b"new")
    os.rename(place / "new", place / "old")
    assert ((place / "other").read_bytes(), (place / "other").stat().st_nlink) == (b"old", 1)


def test_rename_over_directories(place: Path) -> None:
    for name in ("from", "empty", "full"):
        (place / name).mkdir()
    (place / "from" / "mark").write_bytes(b"")
    (place / "full" / "f").write_bytes(b"")
    with fails(ENOTEMPTY):
        os.rename(place / "from", place / "full")
    with opened(place / "empty", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(place / "from", place / "empty")
        assert os.fstat(fd).st_nlink == 0
    assert os.listdir(place / "empty") == ["mark"]
    with fails(EINVAL):
        os.rename(place / "full", place / "full" / "child")
    (place / "full" / "d").mkdir()
    with fails(ENOTEMPTY):
        os.rename(place / "full" / "d", place / "full")


def test_a_directory_that_moves_has_another_parent(place: Path) -> None:
    for name in ("a", "b", "a/d"):
        (place / name).mkdir()
    with opened(place / "a" / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(place / "a" / "d", place / "b" / "d")
        assert os.stat("..", dir_fd=fd).st_ino == (place / "b").stat().st_ino
        entries = {entry.name: entry.inode() for entry in os.scandir(place / "b")}
        assert entries == {"d": os.fstat(fd).st_ino}
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (2, 3)


def test_rename_to_another_name_of_the_same_file_does_nothing(place: Path) -> None:
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "b")
    os.rename(place / "a", place / "a")
    assert sorted(os.listdir(place)) == ["a", "b"]
    assert (place / "a").stat().st_nlink == 2


def test_rename_with_flags(place: Path) -> None:
    (place / "a").write_bytes(b"a")
    (place / "d").mkdir()
    (place / "d" / "in").write_bytes(b"in")
    with fails(EEXIST):
        rename2(place / "a", place / "d", RENAME_NOREPLACE)
    rename2(place / "a", place / "b", RENAME_NOREPLACE)
    with opened(place / "b") as fd:
        rename2(place / "b", place / "d", RENAME_EXCHANGE)
        assert (place / "d").read_bytes() == b"a"
        assert (place / "b" / "in").read_bytes() == b"in"
        assert os.fstat(fd).st_nlink == 1
    with fails(ENOENT):
        rename2(place / "b", place / "missing", RENAME_EXCHANGE)
    with fails(EINVAL):
        rename2(place / "b", place / "d", RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_rename_that_leaves_a_whiteout_keeps_what_it_replaces(place: Path) -> None:
    """What overlayfs does in its upper directory."""
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    with opened(place / "b") as fd:
        rename2(place / "a", place / "b", 4)
        assert os.pread(fd, 9, 0) == b"b"
    assert (place / "b").read_bytes() == b"a"
    assert ((place / "a").lstat().st_mode, (place / "a").lstat().st_rdev) == (stat.S_IFCHR, 0)


def test_names_of_every_kind(place: Path) -> None:
    names = [b"\xff\xfe", "ü".encode(), b" ", b"\n", b"-rf", b"a\\b", b"...", b"%d", b"n" * 255]
    root = os.fsencode(place)
    for name in names:
        with opened(root + b"/" + name, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, name)
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(root + b"/" + name, "rb") as file:
            assert file.read() == name
        os.rename(root + b"/" + name, root + b"/moved")
        os.unlink(root + b"/moved")
    assert os.listdir(root) == []
    for call in (os.stat, os.mkdir, os.unlink, os.rmdir):
        with fails(ENAMETOOLONG):
            call(root + b"/" + b"n" * 256)  # type: ignore[operator]
    with fails(ENAMETOOLONG):
        os.symlink(b"t", root + b"/" + b"n" * 256)
    (place / "f").write_bytes(b"")
    with fails(ENAMETOOLONG):
        os.rename(root + b"/f", root + b"/" + b"n" * 256)
    with fails(ENAMETOOLONG):
        os.link(root + b"/f", root + b"/" + b"n" * 256)


def test_an_open_directory_that_was_removed(place: Path) -> None:
    (place / "d").mkdir()
    with opened(place / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (place / "d").rmdir()
        assert os.fstat(fd).st_nlink == 0
        with fails(ENOENT):
            os.open("f", os.O_RDWR | os.O_CREAT, dir_fd=fd)
        with fails(ENOENT):
            os.mkdir("d", dir_fd=fd)
        with fails(ENOENT):
            os.stat("f", dir_fd=fd)
        assert os.listdir(fd) == []
        (place / "d").mkdir()
        assert os.fstat(fd).st_ino != (place / "d").stat().st_ino
