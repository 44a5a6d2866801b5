"""`--spill-dir DIR`: what is in DIR/NAME and was not made by sharedfs is refused or left alone, and never deleted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedfs.common.errors import CallerMistake
from sharedfs.pages.spill import is_copy
from sharedfs.pool import spill_directory
from tests.support.mount import mounted_pool, sharedfs, unmount_whatever_happened
from tests.support.tenants import wait_until

HANDLE = "0c00000001000000" + "ab" * 12
STRANGER = 65534


@pytest.fixture
def disk(run_dir: Path) -> Path:
    run_dir.chmod(0o755)
    place = run_dir / "disk"
    place.mkdir(mode=0o755)
    return place


def precious(place: Path) -> Path:
    place.mkdir(mode=0o700)
    (place / "notes").write_text("mine")
    (place / HANDLE).write_text("mine, whatever its name")
    return place


def made(disk: Path, name: str) -> Path:
    os.close(spill_directory.open_or_make(str(disk), name))
    return disk / name


def plain(disk: Path, name: str) -> None:
    precious(disk / name)


def symlink(disk: Path, name: str) -> None:
    (disk / name).symlink_to(precious(disk / "elsewhere"))


def symlink_to_anothers(disk: Path, name: str) -> None:
    (disk / name).symlink_to(made(disk, "another"))


def regular_file(disk: Path, name: str) -> None:
    (disk / name).write_text("mine")


def fifo(disk: Path, name: str) -> None:
    os.mkfifo(disk / name)


def copied_with_its_mark(disk: Path, name: str) -> None:
    original = made(disk, "original")
    (original / "notes").write_text("mine")
    shutil.copytree(original, disk / name)
    os.setxattr(disk / name, "trusted.sharedfs.spill", os.getxattr(original, "trusted.sharedfs.spill"))


def test_only_links_of_root_lead_to_the_directory(disk: Path) -> None:
    """In a sticky directory, where a stranger can make a link."""
    sticky = disk / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(disk)
    os.close(spill_directory.open_or_make(str(sticky / "link"), "pool"))
    assert (disk / "pool").is_dir(), "the control: root's link is followed"
    os.chown(sticky / "link", STRANGER, STRANGER, follow_symlinks=False)
    (sticky / "through").symlink_to(sticky / "link")
    for name in ("link", "through"):
        with pytest.raises(CallerMistake, match="symbolic link of another user"):
            spill_directory.open_or_make(str(sticky / name), "another")
    assert not (disk / "another").exists()


def strangers_directory(disk: Path, name: str) -> None:
    os.chown(made(disk, name), STRANGER, STRANGER)


def open_to_others(disk: Path, name: str) -> None:
    made(disk, name).chmod(0o777)


def another_hosts(disk: Path, name: str) -> None:
    place = made(disk, name)
    mark = os.getxattr(place, "trusted.sharedfs.spill").replace(b'"host": "', b'"host": "x')
    os.setxattr(place, "trusted.sharedfs.spill", mark)


def parent_of_a_stranger(disk: Path, name: str) -> None:
    made(disk, name)
    os.chown(disk, STRANGER, STRANGER)


def parent_open_to_others(disk: Path, name: str) -> None:
    made(disk, name)
    disk.chmod(0o777)


def everything_below(place: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(found.relative_to(place)): (found.lstat().st_ino, found.read_bytes() if found.is_file() else b"")
        for found in place.rglob("*")
    }


@pytest.mark.parametrize(
    "prepare",
    [
        plain,
        symlink,
        symlink_to_anothers,
        regular_file,
        fifo,
        copied_with_its_mark,
        strangers_directory,
        open_to_others,
        another_hosts,
        parent_of_a_stranger,
        parent_open_to_others,
    ],
)
def test_what_is_not_proved_to_be_the_pools_is_refused_and_untouched(
    disk: Path, run_dir: Path, unique_name: str, prepare: Callable[[Path, str], None]
) -> None:
    prepare(disk, unique_name)
    before, place = everything_below(disk), run_dir / "mnt"
    place.mkdir()
    refused = sharedfs("mount", str(place), "--name", unique_name, "--spill-dir", str(disk), check=False)
    unmount_whatever_happened(place)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert str(disk) in refused.stderr
    assert everything_below(disk) == before
    with pytest.raises(CallerMistake):  # whoever opens it looks again: it may be another one by then
        spill_directory.open_or_make(str(disk), unique_name)
    assert everything_below(disk) == before


def test_two_pools_of_one_name_do_not_share_a_directory(disk: Path) -> None:
    held = spill_directory.open_or_make(str(disk), "pool")
    try:
        with pytest.raises(CallerMistake, match="in use by another pool"):
            spill_directory.check(str(disk), "pool")
    finally:
        os.close(held)
    spill_directory.check(str(disk), "pool")


def test_what_is_left_of_a_dead_pool_is_taken_over(disk: Path) -> None:
    first = spill_directory.open_or_make(str(disk), "pool")
    inode = os.fstat(first).st_ino
    os.close(first)
    again = spill_directory.open_or_make(str(disk), "pool")
    assert os.fstat(again).st_ino == inode
    assert spill_directory.remove(str(disk), "pool", again)
    os.close(again)
    assert list(disk.iterdir()) == []


def test_a_directory_that_took_the_place_is_not_removed(disk: Path) -> None:
    held = spill_directory.open_or_make(str(disk), "pool")
    (disk / "pool").rename(disk / "aside")
    (disk / "pool").mkdir()
    assert not spill_directory.remove(str(disk), "pool", held)
    os.close(held)
    assert (disk / "pool").is_dir()


def header(name: str) -> bytes:
    return b'{"copy_of": "%s", "runs": []}\n' % name.encode()


def test_only_copies_are_deleted_and_a_directory_with_anything_else_stays(
    disk: Path, run_dir: Path, unique_name: str
) -> None:
    """The control: a leftover copy with the very same name as the strangers' files goes."""
    place = made(disk, unique_name)
    elsewhere = run_dir / "elsewhere"
    elsewhere.write_bytes(header(HANDLE))
    elsewhere.chmod(0o600)
    left_over = place / ("aa" + HANDLE)
    left_over.write_bytes(header("aa" + HANDLE))
    left_over.chmod(0o600)
    unfinished = place / f"bb{HANDLE}.new"
    unfinished.touch(0o600)
    (place / "notes").write_text("mine")
    (place / HANDLE).write_text("mine, whatever its name")
    (place / ("cc" + HANDLE)).symlink_to(elsewhere)
    os.mkfifo(place / ("dd" + HANDLE), 0o600)
    os.link(elsewhere, place / ("ee" + HANDLE))
    (place / ("ff" + HANDLE)).mkdir()
    strangers = place / ("ab" + HANDLE)
    strangers.write_bytes(header("ab" + HANDLE))
    os.chown(strangers, STRANGER, STRANGER)
    kept = everything_below(place)
    del kept[left_over.name], kept[unfinished.name]
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}-pools", "--spill-dir", str(disk))
    with mounted_pool(run_dir / "mnt", unique_name, *options) as pool:
        assert everything_below(place) == kept
        os.kill(pool.status().daemon_pid, 9)
        wait_until(lambda: pool.status_or_none() is not None, "another daemon serves", 60)
        assert everything_below(place) == kept
    assert everything_below(place) == kept


def test_a_copy_is_told_by_its_first_line(disk: Path) -> None:
    fd = os.open(disk, os.O_RDONLY)
    for name, content, expected in (
        (HANDLE, header(HANDLE), True),
        (HANDLE, header("ab" + HANDLE), False),
        (HANDLE, b"", False),
        (f"{HANDLE}.new", b"", True),
        ("notes", header("notes"), False),
    ):
        file = disk / name
        file.write_bytes(content)
        file.chmod(0o600)
        assert is_copy(fd, name) == expected, (name, content)
        file.unlink()
    os.close(fd)
