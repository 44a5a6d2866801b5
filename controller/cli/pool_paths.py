"""The path of a file by its pool's own mountpoint, where a symlink or another mount of the pool leads to it.

Looks at links outside pools only: to look a path up on a pool could touch it, and would wait for its daemon.
"""

import json
import os
from collections import deque
from contextlib import suppress

from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake
from sharedfs.common.trusted_paths import MOST_LINKS
from sharedfs.linux.mountinfo import mounts


def on_pool(path: str) -> str:
    """`path`, absolute, by the mountpoint that the controller knows; as it is when it leads to no pool."""
    if not path:
        raise CallerMistake("the path is empty: name a file on a pool's mount")
    known = _mountpoints()
    pools = {mount.mountpoint: mount for mount in mounts() if mount.device in known}
    absolute = os.path.abspath(path)
    at, left, links = "/", deque(absolute.strip("/").split("/")), 0
    while left:
        at = os.path.normpath(os.path.join(at, left.popleft()))
        mount = pools.get(at)
        if mount is not None:
            return os.path.normpath("/".join([known[mount.device], mount.root, *left]))
        try:
            target = os.readlink(at)
        except FileNotFoundError:
            return absolute
        except OSError:
            continue  # no link
        links += 1
        if links > MOST_LINKS:
            return absolute
        at = os.path.dirname(at)
        left.extendleft(reversed(target.split("/")))
        if target.startswith("/"):
            at = "/"
    return absolute


def _mountpoints() -> dict[tuple[int, int], str]:
    """The mountpoint of each pool, by its device."""
    found = {}
    with suppress(FileNotFoundError, PermissionError):
        for directory in paths.pools_directory().iterdir():
            with suppress(OSError, ValueError, LookupError, TypeError):
                record = json.loads(paths.pool_record(directory.name).read_bytes())
                major, minor = record["device"]
                found[major, minor] = str(record["mountpoint"])
    return found
