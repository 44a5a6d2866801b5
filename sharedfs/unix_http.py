"""HTTP on a Unix socket that only its owner may open, served in the trio loop by hypercorn."""

import socket
from pathlib import Path

import trio
from fastapi import FastAPI
from hypercorn.config import Config
from hypercorn.trio import serve

from sharedfs.kept import listen_at


async def serve_at(app: FastAPI, path: Path, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` at `path` until cancelled; started once clients are answered. Leaves no socket behind."""
    try:
        await serve_on_socket(app, listen_at(path), task_status)
    finally:
        path.unlink(missing_ok=True)


async def serve_on_socket(app: FastAPI, listener: socket.socket, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` on a listening socket, which becomes hypercorn's, until cancelled; as `serve_at` does."""
    server = Config()
    server.bind = [f"fd://{listener.detach()}"]
    server.accesslog = None
    server.loglevel = "WARNING"
    await serve(app, server, shutdown_trigger=trio.sleep_forever, task_status=task_status)  # type: ignore[arg-type]
