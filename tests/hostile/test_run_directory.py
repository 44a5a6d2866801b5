"""The run-time directory in a place of a stranger, and files in it that sharedfs did not make."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.pool import lock, registry
from sharedfs.pool.cgroup import join_pool_cgroup
from tests.support.kills import run_in_child

STRANGER = 65534


def link_of_the_pool(run_dir: Path) -> None:
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    paths.pools_directory().mkdir(parents=True)
    paths.pool_directory("pool").symlink_to(elsewhere)


def directory_of_a_stranger(run_dir: Path) -> None:
    paths.pool_directory("pool").mkdir(parents=True)
    os.chown(paths.pool_directory("pool"), STRANGER, STRANGER)


def pools_open_to_others(run_dir: Path) -> None:
    paths.pools_directory().mkdir(parents=True)
    paths.pools_directory().chmod(0o777)


def run_directory_of_a_stranger(run_dir: Path) -> None:
    paths.pools_directory().mkdir(parents=True)
    os.chown(paths.run_directory(), STRANGER, STRANGER)


def file_in_its_place(run_dir: Path) -> None:
    paths.pools_directory().mkdir(parents=True)
    paths.pool_directory("pool").write_text("mine")


@pytest.mark.parametrize(
    "prepare",
    [
        link_of_the_pool,
        directory_of_a_stranger,
        pools_open_to_others,
        run_directory_of_a_stranger,
        file_in_its_place,
    ],
)
def test_no_pool_is_served_where_others_can_change_its_files(run_dir: Path, prepare: Callable[[Path], None]) -> None:
    prepare(run_dir)
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(CallerMistake, match="SHAREDFS_RUN_DIR"):
        lock.claim("pool")
    assert sorted(run_dir.rglob("*")) == before


def test_only_files_of_a_pool_are_removed(run_dir: Path) -> None:
    os.close(lock.claim("pool"))
    directory, precious = paths.pool_directory("pool"), run_dir / "precious"
    precious.write_text("mine")
    for name in ("daemon.log", "pool.json", ".feed.sock.7"):
        (directory / name).write_text("")
    (directory / "feed.sock").symlink_to(precious)
    (directory / "notes").write_text("mine")
    lock.forget("pool")
    assert [found.name for found in directory.iterdir()] == ["notes"]
    assert precious.read_text() == "mine"
    (directory / "notes").unlink()
    lock.forget("pool")
    assert not directory.exists()


def test_a_link_in_place_of_the_directory_is_not_followed(run_dir: Path) -> None:
    os.close(lock.claim("pool"))
    directory, elsewhere = paths.pool_directory("pool"), run_dir / "elsewhere"
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)
    lock.forget("pool")
    assert [found.name for found in elsewhere.iterdir()] == ["lock"]
    assert registry.read_record("pool") is None


def test_a_cgroup_of_the_pools_name_that_was_there_stays(unique_name: str) -> None:
    hierarchy = find_memory_hierarchy()
    parent = hierarchy.directory(f"/{unique_name}")
    place = parent / "pool"
    parent.mkdir()
    try:
        place.mkdir()
        assert run_in_child(lambda: join_pool_cgroup(hierarchy, unique_name, "pool").leave()) == 0
        assert place.is_dir()
        place.rmdir()
        assert run_in_child(lambda: join_pool_cgroup(hierarchy, unique_name, "pool").leave()) == 0
        assert not place.exists(), "the control: one that it made goes"
    finally:
        for directory in (place, parent):
            if directory.exists():
                directory.rmdir()
