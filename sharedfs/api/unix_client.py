"""Asking over HTTP on a Unix socket, with the standard library.

A command lives for one question or a few, and httpx takes 0.4 s to import: longer than the rest of it.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

CONFLICT = 409

NoAnswer = (OSError, HTTPException)
"""What `ask` raises: nobody listens, or takes too long (TimeoutError), or what comes is no HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    content_type: str
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_callers_mistake(self) -> bool:
        return 400 <= self.status < 500

    def json(self) -> Any:
        return json.loads(self.content)


class _Connection(HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path,
    method: str,
    url: str,
    *,
    query: Mapping[str, str] | None = None,
    body: object = None,
    timeout_seconds: float,
) -> Response:
    """One question to who listens at `path`; `body` goes as JSON. The connection ends with it.

    `timeout_seconds` bounds each wait for the other side. Raises NoAnswer.
    """
    if query:
        url = f"{url}?{urlencode(query)}"
    connection = _Connection(path, timeout_seconds)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, url, None if body is None else json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        content = answer.read()
        return Response(answer.status, answer.reason, answer.headers.get("content-type", ""), content)
    finally:
        connection.close()
