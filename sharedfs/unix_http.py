"""HTTP on a Unix socket that only its owner may open, served in the trio loop by hypercorn."""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import trio
from fastapi import FastAPI
from hypercorn.config import Config
from hypercorn.trio import serve

_BACKLOG = 64


async def serve_on_socket(app: FastAPI, path: Path, task_status: trio.TaskStatus[None]) -> None:
    """Serve `app` at `path` until cancelled; started once clients can connect. A stale socket is replaced."""
    config = Config()
    config.bind = [f"fd://{listen(path).detach()}"]
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = 1.0
    task_status.started()  # the kernel queues connections from here on
    try:
        await serve(app, config, shutdown_trigger=trio.sleep_forever)  # type: ignore[arg-type]
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def listen(path: Path) -> socket.socket:
    """A listening socket of mode 0600 at `path`: bound under another name first, so that it is never open to others."""
    draft = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        draft.unlink()
    listener.bind(os.fspath(draft))
    draft.chmod(0o600)
    listener.listen(_BACKLOG)
    draft.rename(path)
    return listener
