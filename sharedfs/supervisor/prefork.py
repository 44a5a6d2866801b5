"""The spare: a process that has imported everything and forks a daemon when the keeper says so.

Imports take a second of a busy CPU, a fork a few milliseconds: that is how long clients wait when a daemon dies. The
daemon becomes the keeper's child, because the process in between ends at once.
"""

import gc
import logging
import os
import signal
import socket
import sys

from sharedfs.common.errors import HostFault
from sharedfs.common.logs import log_to_stderr
from sharedfs.pool import schema
from sharedfs.pool.handoff import MESSAGE_BYTES, Start
from sharedfs.pool.schema import Held
from sharedfs.supervisor.fd_store import received


def main() -> None:
    """`-m sharedfs.spare`, with the descriptors of `fd_store.py`: the pool's, and one end of a link to the keeper.

    Ends with one line when a daemon of this package cannot follow the one that runs.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would not survive a fork
    kept = received()
    keeper = socket.socket(fileno=kept.pop(Held.KEEPER))
    log_to_stderr()
    try:
        schema.check(kept[Held.STATE])
    except HostFault as fault:
        sys.exit(f"sharedfs: {fault}")
    from sharedfs.daemon import service  # noqa: F401, PLC0415 - what all this is for

    gc.collect()
    gc.freeze()  # what is there stays shared between all that are forked
    keeper.send(schema.warm())
    while True:
        message, fds, _, _ = socket.recv_fds(keeper, MESSAGE_BYTES, 1)
        if not message:
            return
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                keeper.close()
                _become_daemon(message, kept, fds[0])
            os._exit(0)
        os.close(fds[0])
        os.waitpid(middle, 0)


def _become_daemon(message: bytes, kept: dict[str, int], link_fd: int) -> None:
    from sharedfs.daemon import service  # noqa: PLC0415

    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        code = service.run(Start.read(message), kept, socket.socket(fileno=link_fd))
    except BaseException:
        logging.getLogger("sharedfs").exception("the daemon broke")
    finally:
        logging.shutdown()
        os._exit(code)


if __name__ == "__main__":
    main()
