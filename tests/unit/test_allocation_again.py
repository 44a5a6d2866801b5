"""A daemon is killed between an allocation and its line in the books; its successor is asked for the same again."""

import os
from contextlib import ExitStack

import pytest

from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.procfs import process_cgroup
from tests.support.parts import build_parts, make_books, make_store

PAGE = 4096
SIZE = 8


@pytest.mark.parametrize("pool_inode", ["its own", "not known"])
def test_what_it_had_allocated_is_his_who_asks_again(pool_inode: str) -> None:
    """Behind the file's end also where the kernel does not tell whom it charges. It was nobody's."""
    hierarchy, store, books, ended = find_memory_hierarchy(), make_store(8 << 20), make_books(), list[object]()
    own = hierarchy.find(hierarchy.path_in(process_cgroup(os.getpid()) or b"") or "/")
    assert own is not None
    with ExitStack() as resources:
        resources.callback(store.close)
        inode = own.inode if pool_inode == "its own" else 0
        parts = build_parts(resources, store, books, ended=ended, pool_inode=inode)  # type: ignore[arg-type]
        node, _, fd = store.create(store.node(1), b"file", 0o600, 0, 0, 0)
        resources.callback(os.close, fd)
        node.opens, node.lookups = 1, 1
        owner, asks = books.tenants.intern("/owner", 1), books.tenants.intern("/asks", 2)
        os.pwrite(fd, b"x" * (SIZE * PAGE), 0)
        books.pages.charge(node.inode, 0, SIZE * PAGE, owner)
        mode, start, end = syscalls.FALLOC_FL_KEEP_SIZE, SIZE * PAGE, 4 * SIZE * PAGE
        syscalls.fallocate(fd, mode, start, end // 2)  # as far as the first one came
        parts.allocation.allocate(node, mode, start, end, asks)
        owned = {held.owner: size for held, size in books.questions.file_holdings(node.inode)}
        assert owned == {owner: SIZE * PAGE, asks: end - start}
        parts.allocation.allocate(node, mode, start, end, owner)
        assert {held.owner: size for held, size in books.questions.file_holdings(node.inode)} == owned
        books.check()
    assert ended == []
