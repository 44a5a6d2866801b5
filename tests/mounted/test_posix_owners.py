"""Owners, modes, set-id bits and times: the mount keeps them and the kernel enforces them as on tmpfs."""

import os
import stat
import time
from errno import EACCES, EPERM
from pathlib import Path

import pytest

from tests.support.posix import as_user, fails, opened

NEW = os.O_RDWR | os.O_CREAT


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    return path.lstat().st_uid, path.lstat().st_gid


def with_umask(mask: int, path: Path, mode: int) -> None:
    os.umask(mask)
    os.close(os.open(path, NEW, mode))
    os.mkdir(f"{path}-d", mode)
    os.mkfifo(f"{path}-p", mode)


def test_umask(place: Path) -> None:
    for mask in (0, 0o022, 0o077, 0o777):
        as_user(lambda mask=mask: with_umask(mask, place / f"f{mask:o}", 0o777))
        for suffix in ("", "-d", "-p"):
            assert mode_of(place / f"f{mask:o}{suffix}") == 0o777 & ~mask


def test_new_inodes_belong_to_their_maker(place: Path) -> None:
    def make() -> None:
        with_umask(0o022, place / "f", 0o666)
        os.symlink("x", place / "s")
        os.symlink("x" * 300, place / "long")
        os.link(place / "f", place / "l")

    as_user(make, 1000)
    for name in ("f", "f-d", "f-p", "s", "long", "l"):
        assert owner_of(place / name) == (1000, 1000)


def test_set_group_id_directories_give_their_group(place: Path) -> None:
    os.chown(place, 0, 4321)
    os.chmod(place, 0o2777)

    def make() -> None:
        with_umask(0o022, place / "f", 0o755)
        os.symlink("x", place / "s")

    as_user(make)
    for name in ("f", "f-d", "f-p", "s"):
        assert owner_of(place / name) == (1000, 4321)
    assert (mode_of(place / "f"), mode_of(place / "f-d")) == (0o755, 0o2755)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o2745, 0o1644])
def test_made_with_special_bits(place: Path, mode: int) -> None:
    os.umask(os.umask(0))
    old = os.umask(0)
    try:
        os.close(os.open(place / "f", NEW, mode))
        os.mknod(place / "n", stat.S_IFREG | mode)
        os.mkdir(place / "d", mode)
    finally:
        os.umask(old)
    assert (mode_of(place / "f"), mode_of(place / "n")) == (mode, mode)
    assert mode_of(place / "d") == mode & 0o1777, "mkdir(2) keeps the sticky bit only"


def test_chmod(place: Path) -> None:
    (place / "f").write_bytes(b"")
    (place / "d").mkdir()
    for mode in (0, 0o1, 0o644, 0o4755, 0o2755, 0o7777):
        for name in ("f", "d"):
            os.chmod(place / name, mode)
            assert mode_of(place / name) == mode
    with fails(EPERM):
        as_user(lambda: os.chmod(place / "f", 0o777))


def test_chown(place: Path) -> None:
    (place / "f").write_bytes(b"")
    (place / "s").symlink_to("f")
    os.chown(place / "f", 11, -1)
    os.chown(place / "f", -1, 22)
    os.chown(place / "s", 33, 44, follow_symlinks=False)
    assert (owner_of(place / "f"), owner_of(place / "s")) == ((11, 22), (33, 44))
    with fails(EPERM):
        as_user(lambda: os.chown(place / "f", 1000, 1000))


def test_chown_clears_set_id_bits_of_programs(place: Path) -> None:
    (place / "f").write_bytes(b"")
    (place / "d").mkdir()
    for before, after in ((0o6755, 0o755), (0o2745, 0o2745), (0o4644, 0o644)):
        os.chmod(place / "f", before)
        os.chown(place / "f", 5, 6)
        assert mode_of(place / "f") == after
    os.chmod(place / "d", 0o6755)
    os.chown(place / "d", 5, 6)
    assert mode_of(place / "d") == 0o6755


def write_to(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def test_a_write_clears_set_id_bits_unless_root_writes(place: Path) -> None:
    (place / "f").write_bytes(b"abc")
    os.chown(place / "f", 1000, 1000)
    changes = {
        "write": lambda: write_to(place / "f"),
        "truncate": lambda: os.truncate(place / "f", 1),
        "open to truncate": lambda: os.close(os.open(place / "f", os.O_WRONLY | os.O_TRUNC)),
    }
    for name, change in changes.items():
        os.chmod(place / "f", 0o6777)
        change()
        assert mode_of(place / "f") == 0o6777, f"{name} by root"
        as_user(change)
        assert mode_of(place / "f") == 0o777, f"{name} by its owner"
        os.chmod(place / "f", 0o6777)
        as_user(change, 1001)
        assert mode_of(place / "f") == 0o777, f"{name} by another"
    os.chmod(place / "f", 0o2766)
    as_user(changes["write"])
    assert mode_of(place / "f") == 0o2766, "set-gid without x is no program's"


def test_permissions_are_enforced(place: Path) -> None:
    (place / "private").mkdir(0o700)
    (place / "private" / "f").write_bytes(b"secret")
    (place / "f").write_bytes(b"x")
    os.chmod(place / "f", 0o600)
    (place / "listed").mkdir()
    (place / "listed" / "f").write_bytes(b"")
    os.chmod(place / "listed", 0o744)  # may be listed, not entered
    for action in (
        lambda: os.listdir(place / "private"),
        (place / "private" / "f").read_bytes,
        lambda: os.stat(place / "private" / "f"),
        lambda: os.open(place / "f", os.O_RDONLY),
        lambda: os.truncate(place / "f", 0),
        lambda: os.stat(place / "listed" / "f"),
        lambda: os.unlink(place / "listed" / "f"),
        lambda: os.rename(place / "f", place / "listed" / "f"),
    ):
        with fails(EACCES):
            as_user(action)
    assert as_user(lambda: os.listdir(place / "listed")) == ["f"]
    assert as_user(lambda: os.access(place / "f", os.R_OK)) is False
    os.chmod(place / "f", 0o604)
    assert as_user((place / "f").read_bytes) == b"x"
    os.chown(place / "f", 1000, 1000)
    os.chmod(place / "f", 0o066)
    with fails(EACCES):
        as_user((place / "f").read_bytes)


def test_a_sticky_directory_protects_the_files_of_others(place: Path) -> None:
    os.chmod(place, 0o1777)
    as_user(lambda: (place / "mine").write_bytes(b""), 1000)
    as_user(lambda: (place / "theirs").write_bytes(b""), 1001)
    with fails(EPERM):
        as_user(lambda: os.unlink(place / "theirs"), 1000)
    with fails(EPERM):
        as_user(lambda: os.rename(place / "mine", place / "theirs"), 1000)
    as_user(lambda: os.unlink(place / "theirs"), 1001)


def test_the_root_is_sticky_and_for_all(place: Path) -> None:
    root = place.parent.stat()
    assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o1777, 0, 0)


def test_times_to_the_nanosecond(place: Path) -> None:
    (place / "f").write_bytes(b"")
    (place / "d").mkdir()
    (place / "s").symlink_to("f")
    for name in ("f", "d", "s"):
        for atime, mtime in ((1, 2), (1_700_000_000_123_456_789, 1_600_000_000_987_654_321), (-5_000_000_001, 7)):
            os.utime(place / name, ns=(atime, mtime), follow_symlinks=False)
            found = (place / name).lstat()
            assert (found.st_atime_ns, found.st_mtime_ns) == (atime, mtime)
        before = time.time_ns() - 20_000_000  # the kernel's clock for files moves in ticks
        os.utime(place / name, follow_symlinks=False)
        assert (place / name).lstat().st_mtime_ns >= before
    with fails(EPERM):
        as_user(lambda: os.utime(place / "f", ns=(1, 1)))


def test_changes_change_times(place: Path) -> None:
    (place / "f").write_bytes(b"abc")
    (place / "f").chmod(0o666)
    changes = {
        "write": lambda: write_to(place / "f"),
        "truncate": lambda: os.truncate(place / "f", 1),
        "extend": lambda: os.truncate(place / "f", 10_000),
    }
    for name, change in changes.items():
        os.utime(place / "f", ns=(1, 1))
        before = (place / "f").stat().st_ctime_ns
        time.sleep(0.02)
        change()
        assert (place / "f").stat().st_mtime_ns > 1, name
        assert (place / "f").stat().st_ctime_ns > before, name
    os.utime(place / "f", ns=(1, 1))
    before = (place / "f").stat().st_ctime_ns
    time.sleep(0.02)
    os.chmod(place / "f", 0o600)
    assert ((place / "f").stat().st_mtime_ns, (place / "f").stat().st_ctime_ns > before) == (1, True)
    (place / "f").read_bytes()
    assert (place / "f").stat().st_atime_ns > 1, "relatime: read after a change"
