"""The options in force: those of the mount, as the last remount left them. They outlive a daemon."""

from dataclasses import replace
from errno import EINVAL

import psutil

from sharedfs.common.errors import CallerMistake
from sharedfs.common.units import format_size
from sharedfs.linux.mount_flags import atime_attributes
from sharedfs.pool.handoff import Start
from sharedfs.pool.options import PoolOptions, check_changes, check_unclaimed, parse, written
from sharedfs.pool.schema import StateFile
from sharedfs.storage.state_files import StateFiles
from sharedfs.storage.tmpfs import PrivateTmpfs


class OptionsInForce:
    """Of one pool. A change replaces them, so `now` is consistent from any thread."""

    def __init__(self, start: Start, state: StateFiles) -> None:
        self._state = state
        words = state.read(StateFile.OPTIONS).decode() or start.options
        self._now = parse(words, 0).options(start.mountpoint, start.name, 0)

    def now(self) -> PoolOptions:
        return self._now

    def change(self, words: str, tmpfs: PrivateTmpfs) -> None:
        """Change what mount options in `words` ask for, as far as it is not the kernel's to do. Bytes in use stay.

        Raises CallerMistake for what cannot be changed; nothing has changed then.
        """
        asked = parse(words, psutil.virtual_memory().total)
        check_changes(self._now, asked)
        changed = replace(self._now, **asked.settings, flags=asked.flags_on(self._now.flags))
        check_unclaimed(changed)
        used_bytes = tmpfs.used_bytes()
        if changed.size_bytes < used_bytes:
            raise CallerMistake(
                f"size={format_size(changed.size_bytes)} is less than the {format_size(used_bytes)} in use: "
                "remove files first"
            )
        try:
            tmpfs.reconfigure(changed.size_bytes, changed.inodes, atime_attributes(changed.flags))
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise CallerMistake(
                "nr_inodes is less than there are, or bounds what had no bound: remove files, or mount anew"
            ) from error
        tmpfs.room.resize(changed.size_bytes)
        self._now = changed
        self._state.write(StateFile.OPTIONS, written(changed).encode())
