"""A file that goes while the daemon works on its pages: the books have closed its account, and it stays closed."""

import os
from contextlib import ExitStack

import pytest

from sharedfs.linux import huge_pages
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.procfs import process_cgroup
from tests.support.parts import build_all, make_books, make_store

PAGE = 4096
PAGES = 40


@pytest.mark.skipif(
    huge_pages.page_bytes() is None or huge_pages.are_denied(), reason="files in use are moved by MADV_COLLAPSE only"
)
def test_a_file_goes_while_its_pages_become_the_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last user closes it between the move and the line in the books. The daemon still has it open then."""
    hierarchy, store, books, ended = find_memory_hierarchy(), make_store(8 << 20), make_books(), list[object]()
    own = hierarchy.find(hierarchy.path_in(process_cgroup(os.getpid()) or b"") or "/")
    assert own is not None
    with ExitStack() as resources:
        resources.callback(store.close)
        parts, watch = build_all(resources, store, books, ended=ended, pool_inode=own.inode)  # type: ignore[arg-type]
        node, _, fd = store.create(store.node(1), b"file", 0o600, 0, 0, 0)
        resources.callback(os.close, fd)
        os.pwrite(fd, b"x" * (PAGES * PAGE), 0)
        node.opens, node.lookups = 1, 1
        books.pages.charge_strays(node.inode, [(0, PAGES - 1)])
        assert books.questions.resident_bytes() == PAGES * PAGE
        moved = []

        def go_meanwhile(collapsed_fd: int, start: int, end: int) -> None:
            huge_pages.collapse(collapsed_fd, start, end, split=True)
            with store.lock:
                store.unlink(store.node(1), b"file")
                parts.namespace.references.forget(node.inode, 0)
            moved.append(start)

        monkeypatch.setattr(parts.reconcile, "collapse", go_meanwhile)
        watch.recharge.round()
        assert moved == [0], "nothing was moved"
        assert books.questions.resident_bytes() == 0
        assert watch.recharge.refusal == ""
    assert ended == []
