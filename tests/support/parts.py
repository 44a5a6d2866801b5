"""A pool's real parts without a mount: what they stand on is made here, the rest as the daemon makes it."""

import gc
import os
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

from sharedfs.accounting.books import Books
from sharedfs.common.errors import HostFault
from sharedfs.daemon.parts import Given, Parts, build
from sharedfs.daemon.upkeep_parts import UpkeepParts, Watched, build_upkeep
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.spill import Spill
from sharedfs.pool.options import PoolOptions
from sharedfs.storage.journal import Journal
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tmpfs import PrivateTmpfs, make_tmpfs
from sharedfs.storage.tree import Store

_NO_MOUNT = (255, 255)


def task_events() -> TaskEvents | None:
    """None where there are no perf events, as in User-Mode Linux: all is served in Python then."""
    with suppress(HostFault):
        return TaskEvents()
    return None


def skip_without_shortcut() -> None:
    """Skip a test of the shortcut in C, which needs perf events."""
    events = task_events()
    if events is None:
        pytest.skip("without perf events all is served in Python")
    events.close()


def make_store(size_bytes: int, state: StateFiles | None = None, journal: Journal | None = None) -> Store:
    fsmount_fd, root_fd = make_tmpfs(size_bytes)
    os.close(fsmount_fd)
    return Store(PrivateTmpfs(root_fd), state, journal)


def make_books() -> Books:
    gc.collect()  # the memory of earlier ones: User-Mode Linux has addresses for a few
    return Books(find_memory_hierarchy(), os.sysconf("SC_PAGESIZE"), TenantRules("leaf"))


def build_parts(resources: ExitStack, store: Store, books: Books, **given: Any) -> Parts:
    """What serves requests, of `build_all`."""
    return build_all(resources, store, books, **given)[0]


def build_all(
    resources: ExitStack,
    store: Store,
    books: Books,
    *,
    ended: list[BaseException | None],
    device_fd: int | None = None,
    journal: Journal | None = None,
    events: TaskEvents | None = None,
    pool_inode: int = 0,
    device: tuple[int, int] = _NO_MOUNT,
    **options: Any,
) -> tuple[Parts, UpkeepParts]:
    """Without `device_fd` nobody asks and nobody hears an answer. `ended` gets what the pumps or a part ended with.

    Processes are looked at for what they map of `device`.
    """
    if device_fd is None:
        device_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        resources.callback(os.close, device_fd)
    pool_options = PoolOptions("/nowhere", "parts", 0, **{"reserve_bytes": 0, "passthrough": False, **options})
    given = Given(
        options=lambda: pool_options,
        store=store,
        books=books,
        journal=Journal(StateFiles()) if journal is None else journal,
        looks=resources.enter_context(closing(ProcessLooks(books, device))),
        spill=Spill(None, store, books),
        device_fd=device_fd,
        on_end=ended.append,
        events=events,
        pool_inode=pool_inode,
    )
    parts = build(given, resources)
    resources.callback(_close, parts)
    return parts, build_upkeep(given, parts, Watched())


def _close(parts: Parts) -> None:
    parts.channel.close()
    os.close(int(parts.channel.libfuse_mountpoint.rsplit("/", 1)[1]))
