"""Where things are on the host: run-time files below /run/sharedfs, one directory a pool.

    RUN/controller.sock          the controller's API
    RUN/pools/NAME/feed.sock     a pool's feed
    RUN/pools/NAME/pool.json     who serves it (a `PoolRecord`)
    RUN/pools/NAME/daemon.log    what keeper and daemon say
    RUN/pools/NAME/lock          held by who serves it (`pool/lock.py`)

`SHAREDFS_RUN_DIR` moves RUN, `SHAREDFS_STATE_DIR` the directory of what must survive a reboot: two installations
(or a test and the host's own service) then do not see each other's pools. A host has one controller all the same.
"""

import os
from pathlib import Path


def run_directory() -> Path:
    return Path(os.environ.get("SHAREDFS_RUN_DIR", "/run/sharedfs"))


def state_directory() -> Path:
    return Path(os.environ.get("SHAREDFS_STATE_DIR", "/var/lib/sharedfs"))


KEEP_TO_ROOT = "give a SHAREDFS_RUN_DIR and a SHAREDFS_STATE_DIR that only root can change, and all above them"
"""What to do where others can."""


def controller_socket() -> Path:
    return run_directory() / "controller.sock"


FEED_SOCKET, POOL_RECORD, POOL_RECORD_DRAFT, POOL_LOCK = "feed.sock", "pool.json", "pool.new", "lock"
"""In a pool's directory."""
_DAEMON_LOG = "daemon.log"
CONTROLLER_DATABASE = "controller.db"
"""In the state directory: the controller's journal."""


def controller_lock() -> Path:
    """Locked by who writes the journal, from whatever run directory."""
    return state_directory() / "journal.lock"


def guard_lock() -> Path:
    """Locked by the guard of limits as long as it may write values of the journal; its process id is in it."""
    return state_directory() / "guard.lock"


_ONLY_ROOT_OPENS = ("memory.force_empty", "memory.reclaim")  # v1; v2 since Linux 5.19


def host_lock(root_cgroup: Path) -> Path:
    """Locked by the one controller of a host, whatever its directories: a file of the root cgroup, to be written only.

    What others can read they can lock, too. Before Linux 5.19 v2 has no better file than a list that all can read.
    `SHAREDFS_HOST_LOCK` is another file, for tests: each of their controllers has tenants of its own.
    """
    there = (root_cgroup / name for name in _ONLY_ROOT_OPENS if (root_cgroup / name).exists())
    return Path(os.environ.get("SHAREDFS_HOST_LOCK") or next(there, root_cgroup / "cgroup.procs"))


def pools_directory() -> Path:
    return run_directory() / "pools"


def pool_directory(name: str) -> Path:
    return pools_directory() / name


def daemon_log(name: str) -> Path:
    return pool_directory(name) / _DAEMON_LOG


def is_of_a_pool(file: str) -> bool:
    """Whether a name in a pool's directory is one that sharedfs makes there (see above), or a draft of one."""
    known = (POOL_LOCK, _DAEMON_LOG, POOL_RECORD, POOL_RECORD_DRAFT, FEED_SOCKET)
    return file in known or file.startswith(f".{FEED_SOCKET}.")


def feed_socket(name: str) -> Path:
    return pool_directory(name) / FEED_SOCKET


def pool_record(name: str) -> Path:
    return pool_directory(name) / POOL_RECORD
