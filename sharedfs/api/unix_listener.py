"""Listening at a path. Apart from the HTTP server, for the keeper listens too and imports little."""

import os
import socket
from pathlib import Path

BACKLOG = 128
"""So many clients wait: those of a daemon that is just being replaced, too."""


def listen_at(path: Path) -> socket.socket:
    """A socket at `path` that only its owner can reach, in place of whatever was there.

    It is bound beside its name and nobody listens until its mode is set and it is renamed: there is no instant at
    which it is open to others, and the umask, which all threads share, is left alone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(beside))
    beside.chmod(0o600)
    beside.rename(path)
    listener.listen(BACKLOG)
    return listener
