"""Cgroups that pools make go with them, and no others."""

from contextlib import ExitStack
from pathlib import Path

from sharedfs.linux.cgroups import find_memory_hierarchy
from tests.support.mount import mounted_pool, unmount


def test_of_pools_in_one_parent_the_last_one_removes_it(run_dir: Path, unique_name: str) -> None:
    hierarchy = find_memory_hierarchy()
    options = ("--size", "64M", "--cgroup-parent", f"{unique_name}/made")
    with ExitStack() as later:
        with mounted_pool(run_dir / "first", f"{unique_name}-1", *options):
            later.enter_context(mounted_pool(run_dir / "second", f"{unique_name}-2", *options))
        assert hierarchy.directory(f"{unique_name}/made/{unique_name}-2").exists()
        unmount(str(run_dir / "second"))
        assert not hierarchy.directory(unique_name).exists()


def test_cgroups_that_were_there_stay(run_dir: Path, unique_name: str) -> None:
    hierarchy = find_memory_hierarchy()
    existing = hierarchy.directory(unique_name)
    existing.mkdir()
    try:
        with mounted_pool(
            run_dir / "mnt", unique_name, "--size", "64M", "--cgroup-parent", f"{unique_name}/made/deep"
        ) as pool:
            assert pool.status().pool_cgroup == f"/{unique_name}/made/deep/{unique_name}"
        assert [entry.name for entry in existing.iterdir() if entry.is_dir()] == []
    finally:
        existing.rmdir()
