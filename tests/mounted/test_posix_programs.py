"""Whole programs, many files, and the kernel's forgetting: cp, tar, git and SQLite find a filesystem that they know."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.mount import MountedPool
from tests.support.posix import Child, opened
from tests.support.tenants import wait_until

PAGE = 4096
MIB = 1 << 20


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def tree(place: Path) -> Path:
    """A directory with one of each."""
    source = place / "tree"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(40):
        (source / "deep" / f"file-{number}").write_bytes(os.urandom(number * 1000))
    (source / "deep" / "er" / "link").symlink_to("../file-3")
    os.link(source / "deep" / "file-5", source / "hard")
    (source / "program").write_bytes(b"#!/bin/sh\n")
    (source / "program").chmod(0o755)
    with opened(source / "sparse", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 10 * MIB)
    os.mkfifo(source / "pipe")
    os.setxattr(source / "hard", "user.note", b"kept")
    os.utime(source / "program", ns=(1, 1_500_000_000_123_456_789))
    return source


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = digest(path) if path.is_file() and not path.is_symlink() else ""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, status.st_nlink, content, target)
    del found["deep"], found["deep/er"]  # directories have links by the number of their directories
    return found


def test_cp_copies_all_there_is(tree: Path) -> None:
    run("cp", "-a", tree, tree.parent / "copy")
    assert picture(tree.parent / "copy") == picture(tree)
    assert os.getxattr(tree.parent / "copy" / "hard", "user.note") == b"kept"
    assert (tree.parent / "copy" / "sparse").stat().st_blocks * 512 < MIB
    run("rm", "-r", tree)


def test_tar_packs_and_unpacks(tree: Path) -> None:
    run("tar", "-C", tree, "--sparse", "--format=posix", "-cf", tree.parent / "all.tar", ".")
    (tree.parent / "unpacked").mkdir()
    run("tar", "-C", tree.parent / "unpacked", "-xpf", tree.parent / "all.tar")
    assert picture(tree.parent / "unpacked") == picture(tree)
    with tarfile.open(tree.parent / "all.tar") as archive:
        assert len(archive.getmembers()) > 45


def test_a_large_file_is_copied_in_and_out(place: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(48 * MIB))
    expected = digest(tmp_path / "large")
    run("cp", tmp_path / "large", place / "large")
    assert digest(place / "large") == expected
    run("cp", place / "large", place / "again")
    assert digest(place / "again") == expected
    run("dd", f"if={place / 'again'}", f"of={place / 'direct'}", "bs=1M", "iflag=direct", "oflag=direct", "status=none")
    run("cmp", place / "direct", tmp_path / "large")
    shutil.move(place / "direct", tmp_path / "moved")
    assert digest(tmp_path / "moved") == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_keeps_a_repository(place: Path) -> None:
    def git(*arguments: str) -> str:
        return run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments, cwd=place)

    git("init", "-q")
    for number in range(30):
        (place / f"file-{number}").write_text(f"{number}\n" * number)
    git("add", ".")
    git("commit", "-qm", "first")
    (place / "file-3").write_text("changed")
    git("commit", "-qam", "second")
    git("gc", "-q")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    assert git("show", "HEAD~:file-3") == "3\n3\n3\n"
    git("checkout", "-q", "HEAD~")
    assert (place / "file-3").read_text() == "3\n3\n3\n"


def test_sqlite_in_wal_mode_with_two_processes(place: Path) -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(place / "db", timeout=30, isolation_level=None)

    def insert(worker: int) -> None:
        connection = connect()
        for number in range(100):
            connection.execute("insert into t values (?, ?)", (worker, number))
        connection.close()

    connection = connect()
    assert connection.execute("pragma journal_mode=wal").fetchone() == ("wal",)  # needs a shared mapping
    connection.execute("create table t (worker, number)")
    children = [Child(lambda worker=worker: insert(worker)) for worker in range(2)]
    for child in children:
        child.result()
    rows = connection.execute("select worker, count(distinct number) from t group by worker order by 1").fetchall()
    assert rows == [(0, 100), (1, 100)]
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


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


def forget_everything() -> None:
    """Make the kernel drop its inodes and names, so that it sends FORGETs and has to look up everything anew."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


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
        answers = [shared_pool.get("/v1/tenants/files", path=tenant.path) for tenant in tenants]
        paths = {file["path"] for answer in answers for file in answer.raise_for_status().json()["files"]}
        assert "\\xffname" in paths
    os.unlink(name)
