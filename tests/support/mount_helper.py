"""The helper of mount(8) for tests: mount(8) looks for it in /sbin only, which is the whole host's."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HELPER = Path("/sbin/mount.fuse.sharedfs")
_KEPT = HELPER.with_name(".mount.fuse.sharedfs.kept-by-tests")
_LOCK = Path("/tmp/sharedfs-mount-helper.lock")


@contextmanager
def place_of_helper() -> Iterator[None]:
    """Nobody else's test puts a helper in place or looks whether there is one. The lock ends with its process."""
    lock = os.open(_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _KEPT.is_symlink() or _KEPT.exists():  # a test run was killed
            _KEPT.replace(HELPER)
        yield
    finally:
        os.close(lock)


@contextmanager
def installed_helper() -> Iterator[Path]:
    """The helper of this working tree where mount(8) finds it; what was there is put aside and back."""
    ours = Path(sys.executable).with_name(HELPER.name)
    assert ours.exists(), f"{ours}: run deploy/setup --dev"
    with place_of_helper():
        if HELPER.is_symlink() and HELPER.readlink() == ours:  # a test run was killed
            HELPER.unlink()
        elif HELPER.is_symlink() or HELPER.exists():
            HELPER.rename(_KEPT)
        try:
            HELPER.symlink_to(ours)
            yield HELPER
        finally:
            HELPER.unlink(missing_ok=True)
            if _KEPT.is_symlink() or _KEPT.exists():
                _KEPT.rename(HELPER)
