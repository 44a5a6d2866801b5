"""Nothing that a tenant does reads or writes outside of the pool, or more than its ids allow: the daemon is root."""

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import Child, as_user, fails, file_handle, open_by_handle, opened, own_user_namespace

SECRET = b"not for tenants"
TENANT = 1000


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of the host that anybody may enter, with a file that only root may read."""
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as made:
        directory = Path(made)
        directory.chmod(0o755)
        (directory / "secret").write_bytes(SECRET)
        (directory / "secret").chmod(0o600)
        yield directory


@pytest.fixture
def directory(shared_pool: MountedPool, request: pytest.FixtureRequest) -> Path:
    made = shared_pool.path / request.node.name
    made.mkdir()
    made.chmod(0o777)
    return made


def tried(action: Callable[[], object]) -> str:
    """The name of the errno, "done" for none."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def state(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, os.listxattr(path)


def test_links_lead_where_the_tenant_may_go_and_not_where_we_may(directory: Path, outside: Path) -> None:
    """The kernel follows them with the tenant's rights; the daemon, who is root, follows none."""
    os.symlink(outside / "secret", directory / "link")
    os.symlink("../" * 30 + str(outside / "secret"), directory / "dots")
    os.symlink("/proc/self/root" + str(outside / "secret"), directory / "magic")
    os.symlink("/proc/1/root", directory / "init")
    os.symlink("loop", directory / "loop")
    before = state(outside / "secret")

    def use_links() -> list[str]:
        answers = []
        for name in ("link", "dots", "magic", "init"):
            path = directory / name
            answers += [tried(lambda path=path: path.read_bytes()), tried(lambda path=path: path.write_bytes(b"x"))]
            answers += [tried(lambda path=path: os.truncate(path, 0)), tried(lambda path=path: path.chmod(0o777))]
        return answers

    answers = as_user(use_links, TENANT)
    assert set(answers) <= {"EACCES", "EPERM", "EISDIR"}, answers
    with fails(errno.ELOOP):
        (directory / "loop").read_bytes()
    for name in ("link", "dots", "magic"):  # the link itself, as root may
        os.lchown(directory / name, TENANT, TENANT)
        os.utime(directory / name, (1, 1), follow_symlinks=False)
        assert (
            tried(lambda name=name: os.setxattr(directory / name, "trusted.x", b"v", follow_symlinks=False)) == "done"
        )
        os.rename(directory / name, directory / f"{name}2")
        os.unlink(directory / f"{name}2")
    assert state(outside / "secret") == before


def test_nothing_is_linked_in_or_out(directory: Path, outside: Path) -> None:
    (directory / "f").write_bytes(b"x")
    for source, target in ((outside / "secret", directory / "in"), (directory / "f", outside / "out")):
        with fails(errno.EXDEV):
            os.link(source, target)
        with fails(errno.EXDEV):
            os.rename(source, target)


def test_a_file_handle_opens_nothing_for_those_who_are_not_root(directory: Path) -> None:
    (directory / "roots").write_bytes(SECRET)
    (directory / "roots").chmod(0o600)
    handle = file_handle(directory / "roots")

    def open_it() -> str:
        with opened(directory, os.O_RDONLY) as mount_fd:
            return tried(lambda: open_by_handle(mount_fd, handle, os.O_RDONLY))

    def open_it_as_root_of_its_own() -> str:
        own_user_namespace()
        return open_it()

    assert as_user(open_it, TENANT) == "EPERM"
    assert as_user(open_it_as_root_of_its_own, TENANT) in ("EPERM", "EACCES", "ESTALE")


def test_names_that_change_while_they_are_used_lead_nowhere_else(directory: Path, outside: Path) -> None:
    """One tenant swaps a directory for a link out of the pool, others make, move and remove names below it."""
    (directory / "real").mkdir()
    (directory / "real").chmod(0o777)
    os.symlink(outside, directory / "lure")
    outside.chmod(0o777)  # for the kernel they may: a file that appears there is the tenant's, and not root's
    end = time.monotonic() + 1.5

    def swap() -> None:
        while time.monotonic() < end:
            os.rename(directory / "real", directory / "x")
            os.rename(directory / "lure", directory / "real")
            os.rename(directory / "real", directory / "lure")
            os.rename(directory / "x", directory / "real")

    def use(who: int) -> int:
        count = 0
        while time.monotonic() < end:
            path = directory / "real" / f"f{who}"
            tried(lambda path=path: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)))
            tried(lambda path=path: os.rename(path, f"{path}-moved"))
            tried(lambda path=path: os.unlink(f"{path}-moved"))
            count += 1
        return count

    swaps, users = Child(swap), [Child(lambda who=who: use(who), TENANT + who) for who in range(2)]
    swaps.result()
    assert all(user.result() for user in users)
    for path in outside.iterdir():
        assert path.name == "secret" or path.stat().st_uid >= TENANT, "made by the tenant's own rights"
    assert (outside / "secret").read_bytes() == SECRET
    assert sorted(path.name for path in directory.iterdir()) == ["lure", "real"]


def test_root_of_a_user_namespace_is_what_its_ids_are(directory: Path) -> None:
    """It may do in the pool what user 1000 may, and nothing that takes root: as on tmpfs of the host."""
    (directory / "roots").write_bytes(SECRET)
    (directory / "roots").chmod(0o600)
    (directory / "readable").write_bytes(SECRET)
    (directory / "suid").write_bytes(b"x")
    (directory / "suid").chmod(0o4755)

    def in_container() -> dict[str, str]:
        own_user_namespace()
        assert (os.getuid(), os.getgid()) == (0, 0)
        mine = directory / "mine"
        mine.write_bytes(b"x")
        answers = {
            "read": tried((directory / "roots").read_bytes),
            "read what all may": tried((directory / "readable").read_bytes),
            "write": tried(lambda: (directory / "readable").write_bytes(b"x")),
            "chmod": tried(lambda: (directory / "readable").chmod(0o777)),
            "chown": tried(lambda: os.chown(directory / "readable", 0, 0)),
            "give away": tried(lambda: os.chown(mine, 1, 1)),
            "own chmod": tried(lambda: mine.chmod(0o755)),
            "device": tried(lambda: os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
            "trusted": tried(lambda: os.setxattr(mine, "trusted.x", b"v")),
            "security": tried(lambda: os.setxattr(mine, "security.x", b"v")),
            "immutable": tried(lambda: os.setxattr(directory / "readable", "user.x", b"v")),
            "clear suid": tried(lambda: (directory / "suid").chmod(0o755)),
            "make suid": tried(lambda: mine.chmod(0o4755)),
        }
        assert mine.stat().st_uid == 0, "its own root, in its own eyes"
        assert (directory / "readable").stat().st_uid == 65534, "somebody else's"
        return answers

    assert as_user(in_container, TENANT) == {
        "read": "EACCES",
        "read what all may": "done",
        "write": "EACCES",
        "chmod": "EPERM",
        "chown": "EPERM",
        "give away": "EINVAL",
        "own chmod": "done",
        "device": "EPERM",
        "trusted": "EPERM",
        "security": "EPERM",
        "immutable": "EACCES",
        "clear suid": "EPERM",
        "make suid": "done",
    }
    assert ((directory / "mine").stat().st_uid, (directory / "suid").stat().st_mode & 0o7777) == (TENANT, 0o4755)


def test_the_pool_is_reached_by_its_mount_only(shared_pool: MountedPool) -> None:
    """No path of the host leads to the files behind it, and a tenant cannot reach for what the daemon holds open."""
    daemon = shared_pool.status().daemon_pid
    (shared_pool.path / "f").write_bytes(b"x")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [line.split(" - ")[1].split()[0] for line in mounts if str(shared_pool.path) in line] == ["fuse.sharedfs"]
    assert as_user(lambda: tried(lambda: os.listdir(f"/proc/{daemon}/fd")), TENANT) == "EACCES"
    assert as_user(lambda: tried(lambda: os.listdir(f"/proc/{daemon}/map_files")), TENANT) == "EACCES"
    assert (shared_pool.path / "..").stat().st_dev != (shared_pool.path / "f").stat().st_dev, "above it is the host"
