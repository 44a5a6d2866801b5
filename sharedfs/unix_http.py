"""HTTP on a Unix socket that only its owner may open, served in the trio loop by hypercorn."""

import os
import socket
from pathlib import Path

import trio
from fastapi import FastAPI
from hypercorn.config import Config
from hypercorn.trio import serve


async def serve_on_socket(app: FastAPI, path: Path, task_status: trio.TaskStatus[object]) -> None:
    """Serve `app` at `path` until cancelled; started once clients are answered. Leaves no socket behind."""
    server = Config()
    server.bind = [f"fd://{_bind(path)}"]
    server.accesslog = None
    server.loglevel = "WARNING"
    try:
        await serve(app, server, shutdown_trigger=trio.sleep_forever, task_status=task_status)  # type: ignore[arg-type]
    finally:
        path.unlink(missing_ok=True)


def _bind(path: Path) -> int:
    """The descriptor of a socket at `path` that only we can reach, in place of whatever was there.

    It is bound beside its name and nobody listens until its mode is set and it is renamed: there is no instant at
    which it is open to others, and the umask, which all threads share, is left alone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(beside))
    beside.chmod(0o600)
    beside.rename(path)
    return listener.detach()
