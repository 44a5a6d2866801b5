"""A web server that sends files with sendfile(2): busybox httpd."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.programs import needs
from tests.support.tenants import wait_until

pytestmark = needs("busybox")

MIB = 1 << 20


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def port(place: Path) -> Iterator[int]:
    """Where `place` is served."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]

    def answers() -> bool:
        with suppress(ConnectionRefusedError):
            return get(number, "/nothing")[0] == 404
        return False

    server = subprocess.Popen(["busybox", "httpd", "-f", "-p", f"127.0.0.1:{number}", "-h", str(place)])
    try:
        wait_until(answers, "the server answers", 20)
        yield number
    finally:
        server.kill()
        server.wait()


def test_what_was_written_last_is_served(place: Path, port: int) -> None:
    for content in (os.urandom(3 * MIB + 17), os.urandom(4097), b"", os.urandom(MIB)):
        (place / "file").write_bytes(content)
        assert get(port, "/file") == (200, content)
        with (place / "file").open("ab") as file:
            file.write(b"end")
        assert get(port, "/file") == (200, content + b"end")
        assert get(port, "/file", Range=f"bytes={len(content)}-{len(content) + 1}") == (206, b"en")
