"""HTTP on a Unix socket that only its owner may open, served in the trio loop."""

import socket
from pathlib import Path

import trio
from fastapi import FastAPI

from sharedfs.http_server import serve_http
from sharedfs.kept import listen_at


async def serve_at(app: FastAPI, path: Path, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` at `path` until cancelled; started once clients are answered. Leaves no socket behind."""
    try:
        await serve_on_socket(app, listen_at(path), task_status)
    finally:
        path.unlink(missing_ok=True)


async def serve_on_socket(app: FastAPI, listener: socket.socket, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` on a listening socket, which becomes ours, until cancelled; as `serve_at` does."""
    await serve_http(app, listener, task_status=task_status)
