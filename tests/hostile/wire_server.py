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
from contextlib import ExitStack

import pyfuse3
import trio


def use_extension(path: str) -> None:
    """Have `path` (built by a test) be sharedfs.ops.fastpath."""
    from sharedfs import ops  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location("sharedfs.ops.fastpath", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = ops.fastpath = module  # type: ignore[attr-defined]


def main(device_fd: int) -> None:
    from sharedfs.ops.pyfuse3_ops import RareRequests  # noqa: PLC0415
    from sharedfs.storage.journal import Journal  # noqa: PLC0415 - after the extension is chosen
    from sharedfs.storage.state_files import StateFiles  # noqa: PLC0415
    from tests.support.parts import build_parts, make_books, make_store, task_events  # noqa: PLC0415

    state = StateFiles()
    journal = Journal(state)
    store, books = make_store(8 << 20, state, journal), make_books()
    ended: list[BaseException | None] = []
    parts = build_parts(
        ExitStack(),
        store,
        books,
        ended=ended,
        device_fd=device_fd,
        journal=journal,
        events=task_events(),
        reserve_bytes=1 << 30,
    )
    os.umask(0)

    def tell() -> dict[str, object]:
        """Raises when the books contradict themselves; the rest is for the test to judge."""
        with store.lock:
            books.check()
            names = sorted(os.listdir(store.mount_fd))
            return {
                "engine": parts.data_path.engine,
                "resident": books.questions.resident_bytes(),
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

    parts.channel.start()
    threading.Thread(target=converse).start()
    pyfuse3.init(RareRequests(parts.namespace), parts.channel.libfuse_mountpoint, set())
    try:
        trio.run(pyfuse3.main)
    finally:
        traceback.print_exc()
        os._exit(1)  # whoever asks is not to wait


if __name__ == "__main__":
    if len(sys.argv) > 2:
        use_extension(sys.argv[2])
    main(int(sys.argv[1]))
