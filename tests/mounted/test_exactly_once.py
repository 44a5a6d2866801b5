"""Every operation takes effect once and is answered once, wherever in it the daemon is killed (I8).

The daemon kills itself at an armed point (`sharedfs/storage/fault_injection.py`) in the middle of the operation. The
caller waits, sees no error and the first answer. Afterwards all that was made can be removed without a trace: no
look-up is counted too often (the file would stay in removed/) or too seldom (the daemon would say so).
"""

import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from errno import EIO
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.fuse.protocol import Opcode
from sharedfs.linux import syscalls
from sharedfs.ops.recovery import MOST_DEATHS
from sharedfs.pages.reaper import PIECE_PAGES
from sharedfs.storage import fault_injection
from sharedfs.storage.fault_injection import Point, armed_word
from tests.support.holes import content_is_there, fault_holes
from tests.support.kills import is_zombie
from tests.support.mount import MountedPool, mounted_pool
from tests.support.posix import fails, opened
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT
MIB = 1 << 20
PIECE_BYTES = (PIECE_PAGES + 1024) * PAGE  # the last chunk of a piece may be whole
LARGE = 24 * MIB  # what is freed in pieces
HIDDEN_INODES = 3  # of the store: its root, tree/ and removed/


class Armed:
    """The pool's state and store, as only root sees them: through the keeper's descriptors."""

    def __init__(self, pool: MountedPool) -> None:
        self.pool = pool
        self.state = pool.kept(fault_injection.FILE)
        self.store = pool.kept("removed")
        self.log = paths.daemon_log(pool.name)

    def arm(self, opcode: int, point: Point, how: int = 0) -> None:
        """`how` are flags of `faults`."""
        with (self.state / fault_injection.FILE).open("r+b") as file:
            file.write((armed_word(opcode, point) | how).to_bytes(8, "little"))

    def disarm(self) -> None:
        with (self.state / fault_injection.FILE).open("r+b") as file:
            file.write(bytes(8))

    def restarted_since(self, restarts: int) -> bool:
        status = self.pool.status_or_none()
        return status is not None and status.restarts > restarts

    @contextmanager
    def not_restarted(self) -> Iterator[Callable[[], bool]]:
        """A daemon that dies within has no successor until afterwards. Gives what tells that it has died."""
        status = self.pool.status()
        os.kill(status.keeper_pid, signal.SIGSTOP)
        try:
            yield lambda: is_zombie(status.daemon_pid)
        finally:
            os.kill(status.keeper_pid, signal.SIGCONT)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No request is answered within."""
        process_id = self.pool.status().daemon_pid
        os.kill(process_id, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process_id, signal.SIGCONT)

    def remove_all(self) -> None:
        """Everything, and the kernel forgets all of it."""
        shutil.rmtree(self.pool.path / "d")
        wait_until(lambda: os.listdir(self.store / "removed") == [], "nothing is left in removed/", 20)
        wait_until(lambda: self.inodes_in_use() == HIDDEN_INODES, "no inode is left")
        assert "the kernel forgets" not in self.log.read_text()

    def inodes_in_use(self) -> int:
        pool = os.statvfs(self.store)
        return pool.f_files - pool.f_ffree

    def opens_of(self, inode: int) -> int:
        with (self.state / "nodes").open("rb") as table:
            table.seek(inode * 16 + 8)
            return int.from_bytes(table.read(8), "little") & ~(3 << 30)  # two bits that are no part of the number


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


@pytest.fixture(scope="module")
def armed() -> Iterator[Armed]:
    name = f"sharedfs-test-{os.getpid()}-faults"
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAREDFS_RUN_DIR", f"{directory}/run")
        patch.setenv(fault_injection.VARIABLE, "1")
        options = ("--size", "64M", "--cgroup-parent", f"{name}-pools")
        with mounted_pool(Path(directory) / "mnt", name, *options) as pool:
            yield Armed(pool)


JOURNALLED = (Point.TAKEN, Point.INTENDED, Point.DONE, Point.COMMITTED, Point.ANSWERED)


@dataclass(frozen=True)
class Operation:
    """`act` is hit by the kill; what it returns goes to `check` with the place as it is afterwards."""

    opcode: Opcode
    act: Callable[[Place], object]
    check: Callable[[Place, object], None]
    prepare: Callable[[Place], object] = lambda place: None
    points: tuple[Point, ...] = JOURNALLED


UNINTENDED = (Point.TAKEN, Point.DONE, Point.COMMITTED, Point.ANSWERED)
UNJOURNALLED: tuple[Point, ...] = ()


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
    "open": Operation(
        Opcode.OPEN,
        get_all,
        lambda place, read: truth(read == b"f" * 10),
        content("f"),
        points=UNINTENDED,
    ),
    "release": Operation(
        Opcode.RELEASE,
        get_all,
        lambda place, read: truth(read == b"f" * 10),
        content("f"),
        points=UNINTENDED,
    ),
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


@pytest.mark.parametrize(
    ("name", "point"), [(name, point) for name, operation in OPERATIONS.items() for point in operation.points]
)
def test_killed_in_an_operation(armed: Armed, name: str, point: Point) -> None:
    operation = OPERATIONS[name]
    pool = armed.pool
    restarts = pool.status().restarts
    (pool.path / "d").mkdir()
    place = Place(armed, pool.path / "d", os.open(pool.path / "d", os.O_RDONLY))
    place.held.callback(os.close, place.fd)
    with place.held:
        operation.prepare(place)
        armed.arm(operation.opcode, point)
        result = operation.act(place)
        wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
        operation.check(place, result)
        inodes = [entry.inode() for entry in os.scandir(place.path)]
    wait_until(lambda: not any(map(armed.opens_of, inodes)), "no open is counted any more")
    armed.remove_all()
    pool.check_conservation()


def test_a_daemon_that_breaks_is_followed_by_another(armed: Armed) -> None:
    """What it did not foresee ends a daemon, not the mount."""
    restarts = armed.pool.status().restarts
    armed.arm(Opcode.MKDIR, Point.INTENDED, fault_injection.BREAK)
    (armed.pool.path / "d").mkdir()
    wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
    assert "the daemon broke" in armed.log.read_text()
    armed.remove_all()
    armed.pool.check_conservation()


def test_pages_that_are_in_no_file_when_the_daemon_is_killed_come_back(armed: Armed, tenants: Tenants) -> None:
    """Punched out to be charged to the pool; somebody opens the file before they are back, and waits."""
    (armed.pool.path / "d").mkdir()
    path, pages = armed.pool.path / "d" / "f", range(0, 16)
    leaver = tenants.make("leaver")
    fault_holes(leaver, path, pages)
    wait_until(lambda: armed.pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", 20)
    modified, restarts = path.stat().st_mtime_ns, armed.pool.status().restarts
    armed.arm(fault_injection.RECHARGE, Point.HALFWAY)
    with ThreadPoolExecutor(1) as lane:
        with armed.not_restarted() as is_dead:
            leaver.exit()
            wait_until(is_dead, "it kills itself", 20)
            early = lane.submit(content_is_there, path, pages)
            wait_until(early.running, "it is opened", 20)
        assert early.result(timeout=60), "an open waits until the pages are back"
    wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
    assert "were being moved when the daemon was killed" in armed.log.read_text()
    assert path.stat().st_mtime_ns == modified
    assert content_is_there(path, pages)
    wait_until(lambda: armed.pool.holdings().foreign_bytes == 0, "the pool has taken them over", 20)
    armed.remove_all()
    armed.pool.check_conservation()


@pytest.mark.parametrize("how", [0, fault_injection.BREAK])
def test_a_request_that_kills_every_daemon_fails_and_the_pool_lives(armed: Armed, how: int) -> None:
    (armed.pool.path / "d").mkdir()
    restarts = armed.pool.status().restarts
    armed.arm(Opcode.MKNOD, Point.INTENDED, fault_injection.AGAIN | how)
    try:
        with fails(EIO):
            os.mkfifo(armed.pool.path / "d" / "p")
    finally:
        armed.disarm()
    wait_until(lambda: armed.restarted_since(restarts + MOST_DEATHS - 1), "another daemon answers", 20)
    assert os.listdir(armed.pool.path / "d") == []
    os.mkfifo(armed.pool.path / "d" / "p")
    armed.remove_all()
    armed.pool.check_conservation()


def test_books_follow_a_cut_whose_caller_dies_with_the_daemon(armed: Armed) -> None:
    """Whether the kernel asks for it again or not."""
    (armed.pool.path / "d").mkdir()
    place = armed.pool.path / "d" / "a"
    place.write_bytes(b"x" * LARGE)
    restarts = armed.pool.status().restarts
    armed.arm(Opcode.SETATTR, Point.HALFWAY)
    with armed.not_restarted() as is_dead:
        caller = subprocess.Popen([sys.executable, "-c", f"import os; os.truncate({str(place)!r}, 10)"])
        wait_until(is_dead, "the daemon is dead")
        caller.kill()
    caller.wait(20)
    wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
    assert place.read_bytes() == b"x" * 10
    armed.pool.check_conservation()
    armed.remove_all()


def test_a_large_file_is_freed_in_pieces_whoever_is_killed_in_between(armed: Armed) -> None:
    """removed/ is the record: three daemons free it together, and nobody else's pages."""
    (armed.pool.path / "d").mkdir()
    (armed.pool.path / "d" / "b").write_bytes(b"b" * MIB)
    large_file = armed.pool.path / "d" / "a"
    large_file.write_bytes(b"x" * LARGE)
    inode = large_file.stat().st_ino
    left = []
    restarts = armed.pool.status().restarts
    armed.arm(fault_injection.REAP, Point.HALFWAY)
    with armed.not_restarted() as is_dead:
        large_file.unlink()
        wait_until(is_dead, "the daemon is dead")
        left.append(sum(file.stat().st_blocks * 512 for file in (armed.store / "removed").iterdir()))
        armed.arm(fault_injection.REAP, Point.HALFWAY)
    wait_until(lambda: armed.restarted_since(restarts + 1), "the third daemon answers", 20)
    wait_until(lambda: os.listdir(armed.store / "removed") == [], "nothing is left in removed/", 20)
    assert LARGE - PIECE_BYTES <= left[0] < LARGE, "it dies after one piece, and the rest is there"
    assert (armed.pool.path / "d" / "b").read_bytes() == b"b" * MIB
    assert str(inode) not in str(armed.pool.what_is_where())
    assert armed.pool.check_conservation().resident_bytes == MIB
    armed.remove_all()


def test_a_full_pool_waits_for_what_is_being_freed(armed: Armed) -> None:
    """A file that was removed is gone for its writer, who makes another one at once."""
    (armed.pool.path / "d").mkdir()
    for turn in range(6):
        content_of_turn = bytes([turn]) * (40 * MIB)  # of 64
        (armed.pool.path / "d" / f"a{turn}").write_bytes(content_of_turn)
        assert (armed.pool.path / "d" / f"a{turn}").read_bytes() == content_of_turn
        with opened(armed.pool.path / "d" / f"a{turn}", os.O_RDWR):
            (armed.pool.path / "d" / f"a{turn}").unlink()
    with opened(armed.pool.path / "d" / "r", NEW) as fd:
        os.ftruncate(fd, 40 * MIB)
        assert os.fstat(fd).st_blocks * 512 == 40 * MIB, "it is reserved as if the pool were empty"
    armed.pool.check_conservation()
    armed.remove_all()
