"""The daemon dies or breaks in long work, or again and again: the books follow, and the next one goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import EIO

import pytest

from sharedfs.fuse.protocol import Opcode
from sharedfs.linux import huge_pages
from sharedfs.ops.recovery import MOST_DEATHS
from sharedfs.pages.reaper import PIECE_PAGES
from sharedfs.storage import fault_injection
from sharedfs.storage.fault_injection import Point
from tests.support.faults import Armed, armed_pool
from tests.support.holes import content_is_there, fault_holes
from tests.support.operations import LARGE
from tests.support.posix import fails, opened
from tests.support.tenants import Tenants, wait_until

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT
MIB = 1 << 20
PIECE_BYTES = (PIECE_PAGES + 1024) * PAGE  # the last chunk of a piece may be whole


def test_a_daemon_that_breaks_is_followed_by_another(armed: Armed) -> None:
    """What it did not foresee ends a daemon, not the mount."""
    restarts = armed.pool.status().restarts
    armed.arm(Opcode.MKDIR, Point.INTENDED, fault_injection.BREAK)
    (armed.pool.path / "d").mkdir()
    wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
    assert "the daemon broke" in armed.log.read_text()
    armed.remove_all()
    armed.pool.check_conservation()


@pytest.fixture
def copying() -> Iterator[Armed]:
    """As `armed`, where the kernel collapses no pages."""
    with armed_pool("copying", **{fault_injection.HIDDEN_COLLAPSE_VARIABLE: "1"}) as pool:
        yield pool


@pytest.mark.parametrize("way", ["armed", "copying"])
def test_a_file_that_is_being_moved_when_the_daemon_is_killed_is_as_before(
    way: str, request: pytest.FixtureRequest, tenants: Tenants
) -> None:
    """Pages of it are punched out, or holes of it filled. A tenant opens it before that is put right, and waits."""
    armed = request.getfixturevalue(way)
    (armed.pool.path / "d").mkdir()
    path, pages = armed.pool.path / "d" / "f", range(0, 32, 2)
    leaver = tenants.make("leaver")
    fault_holes(leaver, path, pages)
    wait_until(lambda: armed.pool.holdings().foreign_bytes == len(pages) * PAGE, "the pages are foreign", 20)
    found, restarts = path.stat(), armed.pool.status().restarts
    armed.arm(fault_injection.RECHARGE, Point.HALFWAY)
    with ThreadPoolExecutor(1) as lane:
        with armed.not_restarted() as is_dead:
            leaver.exit()
            wait_until(is_dead, "it kills itself", 20)
            in_store = next((armed.store / "tree" / "d").iterdir()).stat()
            # The control: so many pages more there are, if the next daemon does nothing.
            collapses = way == "armed" and huge_pages.can_collapse()
            assert (in_store.st_blocks - found.st_blocks) * 512 == (512 - len(pages) if collapses else -1) * PAGE
            early = lane.submit(content_is_there, path, pages)
            wait_until(early.running, "it is opened", 20)
        assert early.result(timeout=60), "an open waits until the pages are back"
    wait_until(lambda: armed.restarted_since(restarts), "another daemon answers", 20)
    assert "were being moved when the daemon was killed" in armed.log.read_text()
    assert path.stat().st_mtime_ns == found.st_mtime_ns
    assert content_is_there(path, pages)
    wait_until(lambda: armed.pool.holdings().foreign_bytes == 0, "the pool has taken them over", 20)
    assert path.stat().st_blocks == found.st_blocks
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
    assert f" {inode}: " not in armed.pool.what_is_where().replace("{", " "), "no page of it is left"
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
