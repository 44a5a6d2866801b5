"""Where things are on the host: run-time files below /run/sharedfs, one directory a pool.

    RUN/controller.sock          the controller's API
    RUN/pools/NAME/feed.sock     a pool's feed
    RUN/pools/NAME/pool.json     who serves it (a `PoolRecord`)
    RUN/pools/NAME/daemon.log    what keeper and daemon say
    RUN/pools/NAME/lock          held by who serves it (`claims.py`)

`SHAREDFS_RUN_DIR` moves RUN, `SHAREDFS_STATE_DIR` the directory of what must survive a reboot: two installations
(or a test and the host's own service) then do not see each other.
"""

import os
from pathlib import Path


def run_directory() -> Path:
    return Path(os.environ.get("SHAREDFS_RUN_DIR", "/run/sharedfs"))


def state_directory() -> Path:
    return Path(os.environ.get("SHAREDFS_STATE_DIR", "/var/lib/sharedfs"))


def controller_socket() -> Path:
    return run_directory() / "controller.sock"


CONTROLLER_DATABASE = "controller.db"
"""In the state directory: the controller's journal."""


def controller_lock() -> Path:
    """Locked by who writes the journal, from whatever run directory."""
    return state_directory() / "journal.lock"


def pools_directory() -> Path:
    return run_directory() / "pools"


def pool_directory(name: str) -> Path:
    return pools_directory() / name


def daemon_log(name: str) -> Path:
    return pool_directory(name) / "daemon.log"


def feed_socket(name: str) -> Path:
    return pool_directory(name) / "feed.sock"


def pool_record(name: str) -> Path:
    return pool_directory(name) / "pool.json"
