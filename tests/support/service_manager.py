"""A service manager that keeps descriptors, as systemd does : a socket of the test's own."""

import os
import signal
import socket
import sys

from sharedfs.linux.service_manager import KEPT_VARIABLE
from sharedfs.supervisor.fd_store import exec_with
from tests.support.mount import MountedPool


class Manager:
    """Starts a keeper, keeps what it is asked to, and hands that to the next one."""

    def __init__(self, pool: MountedPool, *options: str) -> None:
        self.pool = pool
        self.kept: dict[str, int] = {}
        self.says: list[str] = []
        self._command = [sys.executable, "-m", "sharedfs", "mount", str(pool.path), "--name", pool.name, "--foreground"]
        self._command += options
        self._address = str(pool.path.parent / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._socket.settimeout(40)
        self.process_id = 0

    def start(self) -> None:
        """And wait until the pool serves."""
        self._start()
        while not self._listen().startswith("READY=1"):
            pass

    def start_in_vain(self) -> int:
        """The exit code of a keeper that does not serve."""
        self._start()
        return self.wait()

    def _start(self) -> None:
        self.process_id = os.fork()
        if self.process_id == 0:
            try:
                environment = {**os.environ, "NOTIFY_SOCKET": self._address, KEPT_VARIABLE: "1"}
                exec_with(self.kept, self._command, environment)
            finally:
                os._exit(127)

    def _listen(self) -> str:
        message, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
        said = message.decode()
        if said.startswith("FDSTORE=1"):
            name = next(line for line in said.splitlines() if line.startswith("FDNAME=")).removeprefix("FDNAME=")
            self.kept[name] = fds[0]
        self.says.append(said)
        return said

    def wait(self) -> int:
        """The exit code of the keeper."""
        _, status = os.waitpid(self.process_id, 0)
        self.process_id = 0
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        for fd in self.kept.values():
            os.close(fd)
        self._socket.close()
        if self.process_id:
            os.kill(self.process_id, signal.SIGTERM)
            self.wait()
