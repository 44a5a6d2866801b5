"""The flags of mount(2), and those that fsmount(2) and mount_setattr(2) know under other numbers (linux/mount.h)."""

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

ATIME_FLAGS = MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME

MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_ATIME = 0x70  # the mask of the three; 0 is relatime
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80


def atime_attributes(flags: int) -> int:
    """What MS_ `flags` say of access times, as MOUNT_ATTR_ bits."""
    attributes = MOUNT_ATTR_NODIRATIME if flags & MS_NODIRATIME else 0
    if flags & MS_NOATIME:
        return attributes | MOUNT_ATTR_NOATIME
    return attributes | MOUNT_ATTR_STRICTATIME if flags & MS_STRICTATIME else attributes
