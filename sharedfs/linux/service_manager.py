"""Tells the service manager that started a service how it is, and hands it descriptors to keep (sd_notify(3))."""

import os
import socket

KEPT_VARIABLE = "SHAREDFS_DESCRIPTORS_KEPT"


class ServiceManager:
    """Who started us and wants to be told how we are (sd_notify(3)); nobody, where $NOTIFY_SOCKET is not set.

    `keeps` says whether it hands our descriptors to whoever it starts after us. It does not tell, so its unit does.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self.keeps = bool(self._address and os.environ.pop(KEPT_VARIABLE, ""))
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]

    def tell(self, state: str) -> None:
        self._send(state, [])

    def keep(self, name: str, fd: int) -> None:
        """Have a descriptor kept for whoever is started after us. No O_PATH descriptors: they are refused."""
        if self.keeps:
            self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])

    def _send(self, state: str, fds: list[int]) -> None:
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.connect(self._address)
                socket.send_fds(manager, [state.encode()], fds)
