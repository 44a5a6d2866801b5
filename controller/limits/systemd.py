"""Limits of cgroups that systemd manages are set through systemd, so that what it says and what is in force agree.

Otherwise systemd would write its own value again at the next change of the unit, and `systemctl show` would not tell
what the kernel enforces. Only a unit's own cgroup is meant: what is below a unit (a container in its scope) is written
by whoever runs it, and by us. What is set is good for this boot (a drop-in in /run). An administrator's `systemctl
set-property` writes the kernel's file as ever, and is seen there as a new budget.
"""

import errno
import logging
import os
import threading
import time
from typing import Any, Protocol

from jeepney import DBusAddress, DBusErrorResponse, Properties, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import Message, MessageType

from controller.limits import v1, v2
from controller.limits.cgroup_files import write_file
from controller.limits.types import WriteFile
from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.linux.cgroups import MemoryHierarchy

log = logging.getLogger(__name__)

UNLIMITED = (1 << 64) - 1
_PROPERTIES = {
    v1.LIMIT: "MemoryMax",
    v2.MAX: "MemoryMax",
    v2.HIGH: "MemoryHigh",
    v2.SWAP: "MemorySwapMax",
}
_KINDS = {
    "service": "Service",
    "scope": "Scope",
    "slice": "Slice",
    "socket": "Socket",
    "mount": "Mount",
    "swap": "Swap",
}
_ANSWER_SECONDS = 5.0
# systemd answers, and writes the file when it comes to that: within milliseconds, or never where the kernel refuses.
_CARRIED_OUT_SECONDS = 2.0
_KEPT_UNITS = 4096


class UnitManager(Protocol):
    """systemd, as far as limits go. Raises OSError when it cannot be asked or refuses."""

    def unit_of(self, path: str) -> str | None:
        """The unit whose own cgroup is at `path`, None when there is none."""

    def set_limit(self, unit: str, name: str, limit_bytes: int) -> None:
        """Set a property (MemoryMax, MemoryHigh, MemorySwapMax) until the next boot; UNLIMITED is none."""


class Systemd:
    """The real one, on the system bus. Connects when it is needed, and again when the bus was restarted."""

    _MANAGER = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")

    def __init__(self) -> None:
        self._connection: DBusConnection | None = None

    def unit_of(self, path: str) -> str | None:
        call = new_method_call(self._MANAGER, "GetUnitByControlGroup", "s", (path,))
        try:
            (place,) = self._ask(call)
        except DBusErrorResponse:  # no such unit
            return None
        unit = str(self._property(str(place), "org.freedesktop.systemd1.Unit", "Id"))
        kind = _KINDS.get(unit.rsplit(".", 1)[-1])
        if kind is None:
            return None
        own = self._property(str(place), f"org.freedesktop.systemd1.{kind}", "ControlGroup")
        return unit if own == path else None

    def set_limit(self, unit: str, name: str, limit_bytes: int) -> None:
        properties = [(name, ("t", limit_bytes))]
        try:
            self._ask(new_method_call(self._MANAGER, "SetUnitProperties", "sba(sv)", (unit, True, properties)))
        except DBusErrorResponse as refusal:
            raise OSError(errno.EACCES, f"systemd refuses {name}={limit_bytes} for {unit}: {refusal.data}") from refusal

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _property(self, place: str, interface: str, name: str) -> object:
        address = DBusAddress(place, "org.freedesktop.systemd1", interface)
        ((_, value),) = self._ask(Properties(address).get(name))
        return value

    def _ask(self, call: Message) -> tuple[Any, ...]:
        try:
            if self._connection is None:
                self._connection = open_dbus_connection("SYSTEM")
            reply = self._connection.send_and_get_reply(call, timeout=_ANSWER_SECONDS)
        except (OSError, EOFError, KeyError, ValueError) as error:
            self.close()
            raise OSError(errno.ECOMM, f"the system bus does not answer: {error}") from error
        if reply.header.message_type is MessageType.error:
            raise DBusErrorResponse(reply)
        return tuple(reply.body)


class SystemdWriter:
    """A `WriteFile` that asks systemd where the cgroup is a unit's. From any thread."""

    def __init__(self, hierarchy: MemoryHierarchy, manager: UnitManager, write: WriteFile = write_file) -> None:
        self._hierarchy = hierarchy
        self._manager = manager
        self._write = write
        self._lock = threading.Lock()
        self._units: dict[tuple[str, int], str | None] = {}
        self._unreachable = False

    def __call__(self, descriptor: int, name: str, text: str) -> None:
        kept = _PROPERTIES.get(name)
        unit = None if kept is None else self._unit_of(descriptor)
        if kept is None or unit is None:
            self._write(descriptor, name, text)
            return
        limit_bytes = UNLIMITED if text in ("max", "-1") else int(text)
        with self._lock:
            self._manager.set_limit(unit, kept, limit_bytes)
        deadline = time.monotonic() + _CARRIED_OUT_SECONDS
        while not _shows(descriptor, name, limit_bytes):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"systemd has not written {kept} of {unit}")
            time.sleep(0.002)

    def confirm(self, descriptor: int, name: str, text: str) -> None:
        """Tell systemd what is in force already, or it would write its older word again at the next change."""
        if self._unit_of(descriptor) is not None:
            self(descriptor, name, "max" if text.isdigit() and int(text) >= UNLIMITED_BYTES else text)

    def _unit_of(self, descriptor: int) -> str | None:
        directory, inode = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_ino
        with self._lock:
            if (directory, inode) not in self._units:
                if len(self._units) >= _KEPT_UNITS:
                    self._units.clear()
                try:
                    path = f"/{os.path.relpath(directory, self._hierarchy.mount)}"
                    self._units[directory, inode] = self._manager.unit_of(path)
                except OSError as error:
                    if not self._unreachable:
                        self._unreachable = True
                        log.warning("limits are written without systemd, which may write its own again: %s", error)
                    return None
            return self._units[directory, inode]


def _shows(descriptor: int, name: str, limit_bytes: int) -> bool:
    with open(os.open(name, os.O_RDONLY, dir_fd=descriptor), encoding="ascii") as file:
        text = file.read().strip()
    if limit_bytes == UNLIMITED:
        return text == "max" or (text.isdigit() and int(text) >= UNLIMITED_BYTES)
    return text == str(limit_bytes)
