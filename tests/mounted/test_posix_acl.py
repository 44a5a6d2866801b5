"""POSIX access control lists: kept, inherited and enforced on the mount as on tmpfs, and one with mode and umask."""

import os
import stat
import struct
from errno import EINVAL, EOPNOTSUPP
from pathlib import Path

import pytest

from tests.support.posix import as_user, fails, link_open_file, opened

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY_ID = 0xFFFFFFFF
STRANGER = 1234

Acl = list[tuple[int, int, int]]


def packed(acl: Acl) -> bytes:
    """acl(5) as the kernel takes it: version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in acl)


def acl_of(path: Path, name: str = ACCESS) -> Acl:
    raw = os.getxattr(path, name)
    return [(tag, permissions, number) for tag, permissions, number in struct.iter_unpack("<HHI", raw[4:])]


def with_user(user: int, permissions: int, group: int = 4, mask: int = 7, other: int = 0) -> Acl:
    return [
        (USER_OBJ, 6, NOBODY_ID),
        (USER, permissions, user),
        (GROUP_OBJ, group, NOBODY_ID),
        (MASK, mask, NOBODY_ID),
        (OTHER, other, NOBODY_ID),
    ]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def file(place: Path) -> Path:
    (place / "f").write_bytes(b"content")
    (place / "f").chmod(0o640)
    return place / "f"


def test_an_acl_lets_in_and_keeps_out(file: Path) -> None:
    def read() -> bytes:
        return file.read_bytes()

    with pytest.raises(PermissionError):
        as_user(read, STRANGER)
    os.setxattr(file, ACCESS, packed(with_user(STRANGER, 4)))
    assert as_user(read, STRANGER) == b"content"
    with pytest.raises(PermissionError):
        as_user(read, STRANGER + 1)
    with pytest.raises(PermissionError):
        as_user(lambda: file.write_bytes(b"x"), STRANGER)
    os.setxattr(file, ACCESS, packed(with_user(STRANGER, 0, other=4)))
    with pytest.raises(PermissionError):
        as_user(read, STRANGER)
    assert as_user(read, STRANGER + 1) == b"content"


def test_mode_and_acl_are_one(file: Path) -> None:
    os.setxattr(file, ACCESS, packed(with_user(STRANGER, 6, group=4, mask=6)))
    assert mode_of(file) == 0o660, "the group's bits show the mask"
    file.chmod(0o600)
    assert acl_of(file) == with_user(STRANGER, 6, group=4, mask=0, other=0), "and chmod sets it"
    with pytest.raises(PermissionError):
        as_user(file.read_bytes, STRANGER)
    os.setxattr(file, ACCESS, packed([(USER_OBJ, 7, NOBODY_ID), (GROUP_OBJ, 5, NOBODY_ID), (OTHER, 1, NOBODY_ID)]))
    assert mode_of(file) == 0o751
    assert ACCESS not in os.listxattr(file), "what the mode can say is not kept as an ACL"


def test_removing_an_acl(file: Path) -> None:
    os.setxattr(file, ACCESS, packed(with_user(STRANGER, 4)))
    assert os.listxattr(file) == [ACCESS]
    os.removexattr(file, ACCESS)
    assert os.listxattr(file) == []
    with pytest.raises(PermissionError):
        as_user(file.read_bytes, STRANGER)


def test_what_is_no_acl_is_refused(file: Path) -> None:
    for wrong in (b"", b"\2\0\0\0x", packed([(USER_OBJ, 6, NOBODY_ID)]), packed(with_user(STRANGER, 6)[:-1])):
        if wrong:
            with fails(EINVAL):
                os.setxattr(file, ACCESS, wrong)
    with fails(13):
        os.setxattr(file, DEFAULT, packed(with_user(STRANGER, 4)))
    (file.parent / "link").symlink_to("f")
    with fails(EOPNOTSUPP):
        os.setxattr(file.parent / "link", ACCESS, packed(with_user(STRANGER, 4)), follow_symlinks=False)
    with fails(1):
        as_user(lambda: os.setxattr(file, ACCESS, packed(with_user(STRANGER, 4))), STRANGER)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_default_acl_is_inherited_and_takes_the_umasks_place(place: Path, umask: int) -> None:
    directory = place / "d"
    directory.mkdir()
    directory.chmod(0o777)
    default = with_user(STRANGER, 6, group=5, mask=7, other=4)
    os.setxattr(directory, DEFAULT, packed(default))

    def make() -> None:
        os.umask(umask)
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.close(os.open(directory / "narrow", os.O_CREAT | os.O_WRONLY, 0o600))
        os.mkdir(directory / "sub", 0o777)
        os.mkfifo(directory / "fifo", 0o666)
        os.symlink("file", directory / "link")
        with opened(directory, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
            link_open_file(fd, directory / "nameless")

    as_user(make)
    assert mode_of(directory / "file") == 0o664
    assert acl_of(directory / "file") == with_user(STRANGER, 6, group=5, mask=6, other=4)
    assert mode_of(directory / "narrow") == 0o600
    assert mode_of(directory / "sub") == 0o674
    assert acl_of(directory / "sub", DEFAULT) == default
    assert mode_of(directory / "fifo") == 0o664
    assert mode_of(directory / "nameless") == 0o664
    assert acl_of(directory / "nameless") == acl_of(directory / "file")
    assert (directory / "file").stat().st_uid == 1000


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o777])
def test_without_a_default_acl_the_umask_holds(place: Path, umask: int) -> None:
    def make() -> None:
        os.umask(umask)
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, 0o6775))
        os.mkdir(place / "sub", 0o1777)
        os.mkfifo(place / "fifo", 0o666)

    as_user(make)
    assert mode_of(place / "file") == 0o6775 & ~umask
    assert mode_of(place / "sub") == 0o1777 & ~umask
    assert mode_of(place / "fifo") == 0o666 & ~umask


def test_who_is_not_in_the_group_loses_set_gid_with_an_acl(file: Path) -> None:
    os.chown(file, 1000, 2000)
    file.chmod(0o2770)
    as_user(lambda: os.setxattr(file, ACCESS, packed(with_user(STRANGER, 4))))
    assert mode_of(file) == 0o670
    os.chown(file, 1000, 1000)
    file.chmod(0o2770)
    as_user(lambda: os.setxattr(file, ACCESS, packed(with_user(STRANGER, 4))))
    assert mode_of(file) == 0o2670
