"""Listening at a path. Apart from the HTTP server, for the keeper listens too and imports little."""

import os
import socket
from pathlib import Path

from sharedfs.common.errors import CallerMistake

BACKLOG = 128
"""So many clients wait: those of a daemon that is just being replaced, too."""


def check_replaceable(path: Path) -> None:
    """Raises CallerMistake when something is at `path` that is no socket; a link is none."""
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise CallerMistake(f"{path} is no socket and stays as it is: move it away")


def listen_at(path: Path) -> socket.socket:
    """A socket at `path` that only its owner can reach, in place of a socket that was there.

    Raises CallerMistake when something else is there.

    It is bound beside its name and nobody listens until its mode is set and it is renamed: there is no instant at
    which it is open to others, and the umask, which all threads share, is left alone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    for place in (path, beside):
        check_replaceable(place)
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(beside))
    beside.chmod(0o600)
    beside.rename(path)
    listener.listen(BACKLOG)
    return listener
