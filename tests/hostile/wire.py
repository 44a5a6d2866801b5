"""The kernel's end of a FUSE connection, in the hands of a test: it may send whatever it likes."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import Opcode

UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
SECRET = b"what stands outside of the pool"
KEPT = b"what nobody asks to change " * 1000
_HEADER = struct.Struct("<IIQQIIIHH")


@dataclass
class Kernel:
    """`nodes` are the pool's inodes by name."""

    socket: socket.socket
    server: subprocess.Popen[str]
    outside: Path
    nodes: dict[str, int] = field(default_factory=dict)
    unique: int = 0

    def send(self, opcode: int, node: int, body: bytes, *, length: int | None = None, cut: int | None = None) -> None:
        """`length` is what the header claims, `cut` where the message really ends."""
        self.unique += 1
        length = _HEADER.size + len(body) if length is None else length
        message = _HEADER.pack(length, opcode, self.unique, node, 0, 0, self.server.pid, 0, 0) + body
        try:
            self.socket.send(message[:cut])
        except OSError as error:
            raise AssertionError(f"nobody listens ({error}): {self.why()}") from error

    def reply(self) -> tuple[int, bytes]:
        """(errno, body) for the last request, of the right length and number."""
        try:
            message = self.socket.recv(2 << 20)
        except OSError as error:
            raise AssertionError(f"no answer ({error}): {self.why()}") from error
        assert message, self.why()
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert (length, unique) == (len(message), self.unique)
        assert -4096 < error <= 0
        assert SECRET not in message
        return -error, message[16:]

    def ask(self, opcode: int, node: int, body: bytes = b"", **how: Any) -> tuple[int, bytes]:
        """As `send`. Who gets no answer is followed by a question that does: nothing else comes back in between."""
        self.send(opcode, node, body, **how)
        if opcode in UNANSWERED:
            assert self.ask(Opcode.GETATTR, wire.ROOT_NODE, bytes(16))[0] == 0
            return 0, b""
        return self.reply()

    def must(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        error, answer = self.ask(opcode, node, body)
        assert error == 0, (opcode, os.strerror(error))
        return answer

    def entry(self, name: str, opcode: int, body: bytes) -> None:
        (self.nodes[name],) = struct.unpack_from("<Q", self.must(opcode, wire.ROOT_NODE, body))

    def told(self) -> dict[str, Any]:
        """How the pool is, after its own checks have passed."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        line = self.server.stdout.readline()
        assert line, self.why()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def why(self) -> str:
        """The server is gone: how, and its last words."""
        code: int | str = "still there"
        with suppress(subprocess.TimeoutExpired):
            code = self.server.wait(2)
        self.server.kill()
        assert self.server.stderr is not None
        return f"exit code {code}: {self.server.stderr.read()[-4000:]}"

    def check(self) -> None:
        """It serves, its books are right, nothing was done that was not asked for, and nothing outside of the pool."""
        told = self.told()
        assert told["ended"] == []
        assert told["resident"] == told["used"]
        assert told["names"] == ["removed", "tree"]
        assert told["strangers"] == []
        content = self.must(Opcode.READ, self.nodes["kept"], struct.pack("<QQIIQII", 0, 0, 1 << 20, 2, 0, 0, 0))
        assert content == KEPT
        assert {path.name: path.read_bytes() for path in self.outside.iterdir()} == {"secret": SECRET}


@contextmanager
def served(outside: Path, engine: str = "C", extension: Path | None = None, **env: str) -> Iterator[Kernel]:
    """A pool with a file of each kind. `outside` is a directory of the host that it should not touch."""
    (outside / "secret").write_bytes(SECRET)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    kernel.settimeout(120)  # a busy host takes its time to start Python
    environment: Mapping[str, str] = {**os.environ, **env, "SHAREDFS_PURE_PYTHON": "1" if engine == "Python" else ""}
    command = [sys.executable, "-m", "tests.hostile.wire_server", str(device.fileno())]
    server = subprocess.Popen(
        command if extension is None else [*command, str(extension)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[device.fileno()],
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    device.close()
    try:
        made = Kernel(kernel, server, outside)
        _furnish(made)
        assert made.told()["engine"] == engine
        yield made
    finally:
        server.kill()
        server.communicate()
        kernel.close()


def _furnish(kernel: Kernel) -> None:
    kernel.must(Opcode.INIT, 0, struct.pack("<IIIII", 7, 45, 131072, (1 << 30) - 1, 0) + bytes(44))
    for name in ("kept", "file"):
        body = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o100644, 0, 0) + name.encode() + b"\0"
        kernel.entry(name, Opcode.CREATE, body)
    kernel.entry("directory", Opcode.MKDIR, struct.pack("<II", 0o40755, 0) + b"directory\0")
    kernel.entry("link", Opcode.SYMLINK, b"link\0" + os.fsencode(kernel.outside / "secret") + b"\0")
    kernel.entry("fifo", Opcode.MKNOD, struct.pack("<IIII", 0o10644, 0, 0, 0) + b"fifo\0")
    body = struct.pack("<QQIIQII", 0, 0, len(KEPT), 0, 0, 0, 0) + KEPT
    kernel.must(Opcode.WRITE, kernel.nodes["kept"], body)
