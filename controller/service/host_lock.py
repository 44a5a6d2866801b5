"""One controller for a host: two would take each other's lowered limits for the manager's, and lower them further.

Run and state directories may differ, and containers see other ones, so the lock is on a file of the root cgroup. It is
one that only root can open (`paths.host_lock`): a tenant could take a lock on what it can read, a file in a directory
that everybody may write to, or the name of a socket, and keep every controller away.

Byte 0 is the controller's, byte 1 that of its guard, which writes limits for a while when the controller has died.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.service.guard import HOST_LOCK_BYTE, locked
from sharedfs.common.errors import CallerMistake, HostFault

log = logging.getLogger(__name__)

_CONTROLLER = 0
_GUARD_SECONDS = 5.0


@contextmanager
def host_lock(path: Path) -> Iterator[None]:
    """Held by the one controller of a host, once no guard of another one writes limits any more. Blocks.

    Not where the file cannot be opened: there no limit can be written either. Raises CallerMistake when another
    controller holds it, HostFault when its guard does not end.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("%s: %s: another controller would not be kept away", path, error.strerror)
        yield
        return
    try:
        if not locked(descriptor, _CONTROLLER, fcntl.F_WRLCK):
            raise CallerMistake(
                "a controller already runs on this host, with other directories: stop it first, "
                "`pgrep -af 'sharedctl run'` finds it"
            )
        deadline = time.monotonic() + _GUARD_SECONDS
        while not locked(descriptor, HOST_LOCK_BYTE, fcntl.F_WRLCK):
            if time.monotonic() > deadline:
                raise HostFault("the guard of another controller does not end: kill it, `pgrep -af guard.py` finds it")
            time.sleep(0.02)
        locked(descriptor, HOST_LOCK_BYTE, fcntl.F_UNLCK)
        yield
    finally:
        os.close(descriptor)
