"""Descriptors that outlive a process, by systemd's protocol: sd_listen_fds(3), and FDSTORE=1 of sd_notify(3).

The keeper hands them to the daemon just as a service manager hands them to the keeper, so there is one way to receive
them: descriptors from 3 on, their names and the receiver's process id in the environment.
"""

import fcntl
import os
from collections.abc import Mapping

from sharedfs.pool.schema import Held

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def are_there() -> bool:
    """Whether descriptors were handed to this process. They are received by what it becomes."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and Held.DEVICE in os.environ["LISTEN_FDNAMES"].split(":")


def received() -> dict[str, int]:
    """The descriptors that were handed to this process, by name. They are not handed on by an exec of ours."""
    pid, count, names = (os.environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()):
        return {}
    found = dict(zip(names.split(":"), range(_FIRST, _FIRST + int(count)), strict=True))
    for fd in found.values():
        os.set_inheritable(fd, False)
    return found


def exec_with(descriptors: Mapping[str, int], arguments: list[str], environment: Mapping[str, str]) -> None:
    """Become another program that receives these descriptors. For a child between fork and exec."""
    beyond = _FIRST + len(descriptors)
    out_of_the_way = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for fd in descriptors.values()]
    for number, fd in enumerate(out_of_the_way, _FIRST):
        os.dup2(fd, number)
    handed = (str(os.getpid()), str(len(descriptors)), ":".join(descriptors)) if descriptors else ()
    os.execve(arguments[0], arguments, {**environment, **dict(zip(_VARIABLES, handed, strict=False))})
