"""Serves a pool's real handlers to whoever holds the other end of a socket pair, for requests that no kernel sends.

    python -m tests.hostile.wire_server DEVICE_FD [FASTPATH.SO]

All is as in the daemon, from the channel to the store and pyfuse3, but for the mount and passthrough. A line on
standard input is answered with a JSON object that says how the pool is, checked from the ground up; its end is ours.
"""

import importlib.util
import json
import os
import sys
import threading
import traceback

import pyfuse3
import trio


def use_extension(path: str) -> None:
    """Have `path` (built by a test) be sharedfs.fastpath."""
    import sharedfs  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location("sharedfs.fastpath", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = sharedfs.fastpath = module  # type: ignore[attr-defined]


def main(device_fd: int) -> None:
    from sharedfs.allocation import Allocation  # noqa: PLC0415 - after the extension is chosen
    from sharedfs.books import Books  # noqa: PLC0415
    from sharedfs.callers import Callers  # noqa: PLC0415
    from sharedfs.datapath import DataPath  # noqa: PLC0415
    from sharedfs.descriptors import data_files  # noqa: PLC0415
    from sharedfs.frequent import FrequentRequests  # noqa: PLC0415
    from sharedfs.growth import Growth  # noqa: PLC0415
    from sharedfs.journal import Journal  # noqa: PLC0415
    from sharedfs.kernel.cgroups import find_memory_hierarchy  # noqa: PLC0415
    from sharedfs.kernel.channel import Channel  # noqa: PLC0415
    from sharedfs.kernel.device import Device  # noqa: PLC0415
    from sharedfs.kernel.huge_pages import NEVER  # noqa: PLC0415
    from sharedfs.kernel.shortage import Shortage  # noqa: PLC0415
    from sharedfs.kernel.task_events import TaskEvents  # noqa: PLC0415
    from sharedfs.model.tenant_rules import TenantRules  # noqa: PLC0415
    from sharedfs.namespace import Namespace  # noqa: PLC0415
    from sharedfs.page_moves import PageMoves  # noqa: PLC0415
    from sharedfs.process_looks import ProcessLooks  # noqa: PLC0415
    from sharedfs.rare import RareRequests  # noqa: PLC0415
    from sharedfs.reaper import Reaper  # noqa: PLC0415
    from sharedfs.reconcile import Reconcile  # noqa: PLC0415
    from sharedfs.spill import Spill  # noqa: PLC0415
    from sharedfs.state import StateFiles  # noqa: PLC0415
    from sharedfs.store import Store  # noqa: PLC0415
    from sharedfs.tmpfs import PrivateTmpfs, make_tmpfs  # noqa: PLC0415

    state = StateFiles()
    journal = Journal(state)
    store = Store(PrivateTmpfs(make_tmpfs(8 << 20)[1]), state, journal)
    books = Books(find_memory_hierarchy(), 4096, TenantRules("leaf"))
    events = TaskEvents()
    reconcile = Reconcile(store, books, PageMoves(books, ProcessLooks(books, (255, 255))), NEVER)
    allocation = Allocation(store, books, reconcile, NEVER)
    reaper = Reaper(store, books, allocation)
    growth = Growth(store, books, allocation, 1 << 30, reaper)
    files = data_files(store.mount_fd)
    device, callers = Device(device_fd), Callers(books, events)
    namespace = Namespace(
        store,
        files,
        books,
        allocation,
        reconcile,
        device,
        growth,
        Callers(books, events),
        Spill(None, store, books),
        reaper,
        fast_reads=False,
    )
    ended: list[BaseException | None] = []

    def make_room() -> None:
        files.make_room()
        callers.make_room()
        namespace.make_room()

    shortage = Shortage(make_room, reaper.free_some)
    data_path = DataPath(
        store, files, books, allocation, growth, reaper, callers, events, device, shortage, ended.append
    )
    frequent = FrequentRequests(namespace, journal, device, shortage, callers.tenant_of, ended.append)
    channel = Channel(
        device,
        {**data_path.handlers, **frequent.handlers},
        callers.tenant_of,
        shortage=shortage,
        shortcut=data_path.shortcut,
        want_passthrough=False,
        on_end=ended.append,
        buffer=journal.request,
    )
    os.umask(0)

    def tell() -> dict[str, object]:
        """Raises when the books contradict themselves; the rest is for the test to judge."""
        with store.lock, books.lock:
            books.ledger.check()
            names = sorted(os.listdir(store.mount_fd))
            return {
                "engine": data_path.engine,
                "resident": books.ledger.resident_bytes,
                "used": store.tmpfs.used_bytes(),
                "names": names,
                "strangers": [inode for inode in store.tmpfs.removed_names() if not store.lookups_of(inode)],
                "ended": [repr(error) for error in ended],
                "descriptors": len(os.listdir("/proc/self/fd")),
            }

    def converse() -> None:
        for _ in sys.stdin:
            print(json.dumps(tell()), flush=True)
        os._exit(0)

    channel.start()
    threading.Thread(target=converse).start()
    pyfuse3.init(RareRequests(namespace), channel.libfuse_mountpoint, set())
    try:
        trio.run(pyfuse3.main)
    finally:
        traceback.print_exc()
        os._exit(1)  # whoever asks is not to wait


if __name__ == "__main__":
    if len(sys.argv) > 2:
        use_extension(sys.argv[2])
    main(int(sys.argv[1]))
