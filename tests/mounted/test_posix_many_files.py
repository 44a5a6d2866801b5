"""Many files, and the kernel's forgetting."""

import os
import shutil
from pathlib import Path

from tests.support.mount import MountedPool
from tests.support.posix import forget_everything, opened
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20


def test_two_thousand_open_files(place: Path) -> None:
    files = [os.open(place / f"{number}", os.O_RDWR | os.O_CREAT) for number in range(2000)]
    try:
        for number, fd in enumerate(files):
            os.write(fd, b"%d" % number)
        for number in range(0, 2000, 2):
            os.unlink(place / f"{number}")
        for number, fd in reversed(list(enumerate(files))):
            assert os.pread(fd, 10, 0) == b"%d" % number
    finally:
        for fd in files:
            os.close(fd)
    assert len(os.listdir(place)) == 1000


def test_files_keep_their_content_when_the_kernel_forgets_them(pool: MountedPool) -> None:
    """More inodes than the descriptor cache of the data path holds."""
    place = pool.path / "forgotten"
    place.mkdir()
    for number in range(5000):
        with opened(place / f"{number}", os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"%d" % number)
    os.setxattr(place / "7", "user.a", b"x")
    inodes = {number: (place / f"{number}").stat().st_ino for number in (0, 7, 4999)}
    with opened(place / "4999") as held:
        forget_everything()
        for number in range(5000):
            with opened(place / f"{number}", os.O_RDONLY) as fd:
                assert os.read(fd, 10) == b"%d" % number
        assert {number: (place / f"{number}").stat().st_ino for number in inodes} == inodes
        assert os.getxattr(place / "7", "user.a") == b"x"
        pool.check_conservation()
        before = pool.holdings().resident_bytes
        forget_everything()
        shutil.rmtree(place)
        forget_everything()
        assert os.pread(held, 10, 0) == b"4999"
        wait_until(lambda: pool.holdings().resident_bytes == before - 4999 * PAGE, "all but the open one went")
    wait_until(lambda: pool.holdings().resident_bytes == before - 5000 * PAGE, "the open one went")
    pool.check_conservation()


def test_nothing_stays_of_what_was_unlinked(pool: MountedPool) -> None:
    place = pool.path / "unlinked"
    place.mkdir()
    before = pool.check_conservation().resident_bytes
    (place / "a").write_bytes(b"x" * 10 * PAGE)
    os.link(place / "a", place / "b")
    (place / "c").write_bytes(b"x" * 10 * PAGE)
    (place / "long").symlink_to("x" * 1000)
    forget_everything()
    os.unlink(place / "a")
    os.rename(place / "c", place / "b")
    wait_until(lambda: pool.holdings().resident_bytes == before + 11 * PAGE, "the replaced file went")
    shutil.rmtree(place)
    wait_until(lambda: pool.holdings().resident_bytes == before, "everything went")
    wait_until(lambda: pool.resident_by_statfs() == before, "from the tmpfs, too")


def test_names_that_are_no_text_are_shown_all_the_same(shared_pool: MountedPool) -> None:
    name = os.fsencode(shared_pool.path) + b"/\xffname"
    with opened(name, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x")
        tenants = shared_pool.holdings().tenants
        paths = {file["path"] for tenant in tenants for file in shared_pool.files_of(tenant.path)}
        assert "\\xffname" in paths
    os.unlink(name)
