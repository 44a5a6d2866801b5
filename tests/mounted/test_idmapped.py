"""ID-mapped mounts (mount_setattr(2)): what a pod with a user namespace of its own has of a volume.

On the mount of a container whose ids begin at 100000, a file of the filesystem's user 5 belongs to 100005, and what
100005 makes there is user 5's.
"""

import ctypes
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from errno import EACCES, EOVERFLOW, EPERM
from pathlib import Path

import pytest

from deploy.demo.host import kernel_release
from tests.support.mount import MountedPool
from tests.support.posix import as_user, fails
from tests.support.tenants import Tenants

FIRST, USER = 100_000, 5
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLONE, _CLOEXEC, _FROM_EMPTY, _MOUNT_ATTR_IDMAP, _EMPTY_PATH = 1, os.O_CLOEXEC, 4, 0x100000, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(
    tuple(map(int, kernel_release().split("-")[0].split(".")[:2])) < (6, 12), reason="FUSE has them since Linux 6.12"
)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@pytest.fixture
def mapping() -> Iterator[int]:
    """A descriptor of a user namespace whose ids begin at FIRST."""
    with subprocess.Popen(["unshare", "--user", "sleep", "60"]) as process:
        try:
            own = os.readlink("/proc/self/ns/user")
            while os.readlink(f"/proc/{process.pid}/ns/user") == own:
                assert process.poll() is None
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{kind}").write_text(f"0 {FIRST} 65536\n")
            descriptor = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
        finally:
            process.kill()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def mapped(place: Path, mapping: int, tmp_path: Path) -> Iterator[Path]:
    """The place once more, with the ids of the user namespace."""
    tree = _call(_OPEN_TREE, -100, os.fsencode(place), _CLONE | _CLOEXEC)
    change = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, mapping)
    _call(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH, change, ctypes.c_size_t(len(change)))
    target = tmp_path / "mapped"
    target.mkdir()
    for directory in (target, *target.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    _call(_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), _FROM_EMPTY)
    os.close(tree)
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def as_mapped(action: Callable[[], object], user: int = USER) -> object:
    return as_user(action, FIRST + user)


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def test_whoever_makes_something_owns_it(place: Path, mapped: Path) -> None:
    place.chmod(0o777)

    def make() -> None:
        (mapped / "file").write_text("x")
        (mapped / "directory").mkdir()
        (mapped / "link").symlink_to("file")
        os.mkfifo(mapped / "fifo")

    as_mapped(make)
    for name in ("file", "directory", "link", "fifo"):
        assert owner(place / name) == (USER, USER), name
        assert owner(mapped / name) == (FIRST + USER, FIRST + USER), name


def test_ids_count_as_they_are_mapped(place: Path, mapped: Path) -> None:
    place.chmod(0o777)
    (place / "own").write_text("x")
    os.chown(place / "own", USER, USER)
    (place / "own").chmod(0o600)
    assert as_mapped((mapped / "own").read_text) == "x"
    with fails(EACCES):
        as_mapped((mapped / "own").read_text, USER + 1)
    with fails(EACCES):
        as_user((place / "own").read_text, FIRST + USER)
    as_mapped(lambda: (mapped / "own").chmod(0o640))
    assert stat.S_IMODE((place / "own").stat().st_mode) == 0o640
    with fails(EPERM):
        as_mapped(lambda: (mapped / "own").chmod(0o644), USER + 1)
    os.chown(mapped / "own", FIRST + 7, FIRST + 7)
    assert owner(place / "own") == (7, 7)


def test_who_has_no_id_there_makes_nothing(place: Path, mapped: Path) -> None:
    place.chmod(0o777)
    with fails(EOVERFLOW):
        as_user(lambda: (mapped / "file").write_text("x"), USER)


def test_attributes_of_root_are_listed_to_root_only(place: Path, mapped: Path) -> None:
    (place / "file").write_text("x")
    (place / "file").chmod(0o666)
    os.setxattr(place / "file", "trusted.hidden", b"")
    os.setxattr(place / "file", "user.seen", b"")
    assert sorted(os.listxattr(place / "file")) == ["trusted.hidden", "user.seen"]
    assert as_mapped(lambda: os.listxattr(mapped / "file")) == ["user.seen"]
    assert as_user(lambda: os.listxattr(place / "file")) == ["user.seen"]


@pytest.mark.parametrize("place", ["sharedfs"], indirect=True)
def test_a_tenant_pays_for_what_it_makes_there(
    shared_pool: MountedPool, mapped: Path, tenants: Tenants, place: Path
) -> None:
    tenant = tenants.make("tenant")
    tenant.do(f"for become in (os.setresgid, os.setresuid): become({FIRST}, {FIRST}, {FIRST})")
    tenant.do(f"fd = os.open('{mapped}/paid', os.O_RDWR | os.O_CREAT); os.write(fd, bytes(1 << 20))")
    assert shared_pool.used(tenant) == 1 << 20
    assert owner(place / "paid") == (0, 0)
