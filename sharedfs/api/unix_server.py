"""HTTP on a Unix socket that only its owner may open, served in the trio loop."""

from pathlib import Path

import trio

from sharedfs.api.http_server import Application, serve_http
from sharedfs.api.unix_listener import listen_at


async def serve_at(app: Application, path: Path, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` at `path` until cancelled; started once clients are answered. Leaves no socket behind."""
    listener = listen_at(path)
    try:
        await serve_http(app, listener, task_status=task_status)
    finally:
        path.unlink(missing_ok=True)
