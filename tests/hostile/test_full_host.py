"""The host runs out of something: tenants get what tmpfs would say, at the same moment, and nobody else notices."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from errno import ENOSPC
from pathlib import Path

import pytest

from sharedfs.fuse.protocol import Opcode
from sharedfs.linux import syscalls
from sharedfs.ops.recovery import _Recovery
from sharedfs.storage.journal import Kind
from tests.support.mount import MountedPool, mounted_pool
from tests.support.parts import build_parts, make_books, make_store
from tests.support.posix import fails

INODES = 40


@pytest.fixture
def few_inodes(run_dir: Path, unique_name: str) -> Iterator[MountedPool]:
    options = ("-o", f"size=16m,nr_inodes={INODES}", "--cgroup-parent", f"{unique_name}-pools")
    with mounted_pool(run_dir / "mnt", unique_name, *options) as mounted:
        yield mounted


def fill_with_names(place: Path) -> list[Path]:
    """Make files until there is no inode left."""
    made = []
    with fails(ENOSPC):
        while True:
            made.append(place / f"f{len(made)}")
            made[-1].touch()
    return made[:-1]


def test_without_inodes_only_what_needs_one_fails(few_inodes: MountedPool) -> None:
    """Replacing a file that is in use takes none, as on tmpfs: it used to get a second name for a moment."""
    (few_inodes.path / "directory").mkdir()
    files = fill_with_names(few_inodes.path)
    assert len(files) == INODES - 2, "the root and the directory are inodes, too"
    first, second, *others = files
    with open(second, "w") as in_use:
        in_use.write("replaced")
        in_use.flush()
        first.write_text("new")
        first.rename(second)
        assert second.read_text() == "new"
        with open(f"/proc/self/fd/{in_use.fileno()}") as still:
            assert still.read() == "replaced"
        for what in (first.touch, first.mkdir, lambda: os.link(second, first), lambda: first.symlink_to("x")):
            with fails(ENOSPC):
                what()
    for other in others:
        other.rename(few_inodes.path / "directory" / other.name)
    few_inodes.check_conservation()


def test_an_inode_that_is_free_can_be_used_at_once(few_inodes: MountedPool) -> None:
    """An unlinked file is gone for those who come next, although the kernel tells us of its end in its own time."""
    files = fill_with_names(few_inodes.path)
    for turn in range(300):
        files[turn % len(files)].unlink()
        files[turn % len(files)].write_bytes(b"x" * (turn % 3))
    with fails(ENOSPC):
        (few_inodes.path / "one more").touch()


@pytest.mark.alone  # who looks at this process's files, as other tests do, keeps an unlinked one for a moment
def test_memory_that_is_free_can_be_used_at_once(few_inodes: MountedPool) -> None:
    for _ in range(20):
        (few_inodes.path / "all").write_bytes(bytes(16 << 20))
        (few_inodes.path / "all").unlink()
    few_inodes.check_conservation()


def test_a_daemon_that_is_killed_while_two_files_have_changed_places_leaves_no_trace() -> None:
    """A rename over a file in use is two steps; after the first one its successor takes it back, and is asked again."""
    store, ended, answered = make_store(1 << 20), list[BaseException | None](), list[int]()
    with ExitStack() as resources:
        resources.callback(store.close)
        parts = build_parts(resources, store, make_books(), ended=ended)
        old, new = (store.make(store.node(1), name, 0o100644, 0, 0, 0)[0] for name in (b"old", b"new"))
        directory = store.path_descriptor(store.node(1))
        syscalls.rename(directory, b"old", directory, b"new", syscalls.RENAME_EXCHANGE)
        slot = store.slot
        slot.take(77, Opcode.RENAME)
        slot.intend(Kind.RENAME, old.inode, 1, b"old", 1, b"new", new.inode)
        _Recovery(parts.namespace, lambda unique, *_: answered.append(unique)).end(slot)
        assert [store.lookup(store.node(1), name)[0].inode for name in (b"old", b"new")] == [old.inode, new.inode]
        assert answered == []
    assert ended == []
