"""The pool's own mount, as the kernel shows it: it may be moved, mounted elsewhere, or gone."""

from contextlib import suppress

from sharedfs.common.errors import HostFault
from sharedfs.linux import syscalls
from sharedfs.linux.mountinfo import Mount, mount_at
from sharedfs.pool.schema import StateFile
from sharedfs.storage.state_files import StateFiles


class OwnMount:
    """`device` is its (major, minor): as the first daemon saw it, for it may be mounted elsewhere only by now."""

    def __init__(self, mountpoint: str, state: StateFiles) -> None:
        """Raises HostFault when it is gone, and no daemon has seen it."""
        self._mountpoint = mountpoint
        self.device = self._find_device(state)

    def _find_device(self, state: StateFiles) -> tuple[int, int]:
        known = state.read(StateFile.DEVICE)
        if known:
            major, minor = known.split()
            return int(major), int(minor)
        mount = mount_at(self._mountpoint)
        if mount is None:
            raise HostFault(f"{self._mountpoint} is not mounted any more")
        state.write(StateFile.DEVICE, b"%d %d" % mount.device)
        return mount.device

    def find(self) -> Mount | None:
        """Our mount as the kernel shows it, None when it is gone. Its flags may be others than we mounted it with."""
        mount = mount_at(self._mountpoint)
        return mount if mount is not None and mount.device == self.device else None

    def unmount(self) -> None:
        """Take our mount away, if it is still there; lazily, for tenants may be in it."""
        if self.find() is not None:
            with suppress(OSError):
                syscalls.umount(self._mountpoint, syscalls.MNT_DETACH)
