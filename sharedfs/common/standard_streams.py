"""Standard input, output and error, which a shell or a service manager may have closed (`>&-`)."""

import os

_STDERR = 2


def open_standard_streams() -> None:
    """Open /dev/null in place of those that are closed, before anything else is opened.

    Else the next descriptor gets such a number: a pool's lock was closed when its log took the place of standard error,
    and the pool that served was taken for dead.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)
