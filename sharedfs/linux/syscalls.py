"""The system calls that Python's standard library lacks, as plain functions that raise OSError.

Numbers of the mount API are the same on every architecture (asm-generic/unistd.h); all else goes through glibc's names.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import (
    POINTER,
    Array,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_long,
    c_ssize_t,
    c_ubyte,
    c_uint,
    c_uint64,
    c_ulong,
    sizeof,
)
from errno import ENOSYS

_libc = ctypes.CDLL(None, use_errno=True)

MNT_FORCE, MNT_DETACH = 0x1, 0x2  # force: a FUSE connection is aborted, and who waits for an answer gets ENOTCONN

AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE = 0x1
RENAME_EXCHANGE = 0x2
RENAME_WHITEOUT = 0x4

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602  # linux/fs.h: an int of flags, though the number says long
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820  # struct fsxattr
FALLOC_FL_KEEP_SIZE = 0x1
FALLOC_FL_PUNCH_HOLE = 0x2

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_FSPICK, _SYS_MOUNT_SETATTR = 430, 431, 432, 433, 442
_FSOPEN_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE, _FSCONFIG_CMD_RECONFIGURE = 0, 1, 6, 7
_FSMOUNT_CLOEXEC = 0x1
_FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 0x1, 0x8

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NANOSECONDS = 1_000_000_000
LONGEST_NAME_BYTES = 255  # NAME_MAX, linux/limits.h
STATX_BYTES = 256
_STATFS_BYTES, _TMPFS_MAGIC = 256, 0x01021994  # struct statfs begins with f_type and is shorter; linux/magic.h
STAT_BLOCK_BYTES = 512  # of stat's st_blocks
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 1 << 3

_PR_SET_CHILD_SUBREAPER = 36

_HANDLE_BYTES = 128  # MAX_HANDLE_SZ, linux/exportfs.h; tmpfs needs 12


class _FileHandle(Structure):
    _fields_ = [("handle_bytes", c_uint), ("handle_type", c_int), ("f_handle", c_ubyte * _HANDLE_BYTES)]


class _Timespec(Structure):
    _fields_ = [("tv_sec", c_long), ("tv_nsec", c_long)]


class _MountAttr(Structure):
    _fields_ = [("attr_set", c_uint64), ("attr_clr", c_uint64), ("propagation", c_uint64), ("userns_fd", c_uint64)]


_libc.syscall.restype = c_long
_libc.mount.argtypes = [c_char_p, c_char_p, c_char_p, c_ulong, c_char_p]
_libc.umount2.argtypes = [c_char_p, c_int]
_libc.name_to_handle_at.argtypes = [c_int, c_char_p, POINTER(_FileHandle), POINTER(c_int), c_int]
_libc.open_by_handle_at.argtypes = [c_int, POINTER(_FileHandle), c_int]
_libc.renameat2.argtypes = [c_int, c_char_p, c_int, c_char_p, c_uint]
_libc.utimensat.argtypes = [c_int, c_char_p, POINTER(_Timespec), c_int]
_libc.statx.argtypes = [c_int, c_char_p, c_int, c_uint, c_char_p]
_libc.getdents64.argtypes = [c_int, c_char_p, ctypes.c_size_t]
_libc.getdents64.restype = c_ssize_t
_libc.fallocate.argtypes = [c_int, c_int, ctypes.c_int64, ctypes.c_int64]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    _checked(
        _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode()), f"mount {target}"
    )


def umount(target: str, flags: int = 0) -> None:
    _checked(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def detached_mount(kind: str, options: Mapping[str, str], flags: Sequence[str] = (), attributes: int = 0) -> int:
    """An O_PATH descriptor of the root of a new mount of a filesystem that is attached nowhere: no path leads to it.

    It is gone when the last descriptor into it is closed, however that comes about. `options` and `flags` are the
    filesystem's own, `attributes` are MOUNT_ATTR_ bits. Linux >= 5.2.
    """
    context = _checked(_libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), f"fsopen {kind}")
    try:
        _configure(context, options)
        for flag in flags:
            _checked(
                _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, flag.encode(), None, 0), f"fsconfig {flag}"
            )
        _checked(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig create")
        return _checked(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), f"fsmount {kind}")
    finally:
        os.close(context)


def reconfigure_tmpfs(mount_fd: int, options: Mapping[str, str]) -> None:
    """Change options of the tmpfs whose root `mount_fd` is. EINVAL when more is in use than would be allowed."""
    flags = _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH
    context = _checked(_libc.syscall(_SYS_FSPICK, mount_fd, b"", flags), "fspick tmpfs")
    try:
        _configure(context, options)
        _checked(
            _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_RECONFIGURE, None, None, 0), "fsconfig reconfigure"
        )
    finally:
        os.close(context)


def _configure(context: int, options: Mapping[str, str]) -> None:
    for key, value in options.items():
        _checked(
            _libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0),
            f"fsconfig {key}={value}",
        )


def set_mount_attributes(mount_fd: int, cleared: int, set_: int) -> None:
    """Change MOUNT_ATTR_ bits of a mount by fsmount's descriptor. Linux >= 5.12."""
    change = _MountAttr(attr_set=set_, attr_clr=cleared)
    _checked(
        _libc.syscall(_SYS_MOUNT_SETATTR, mount_fd, b"", AT_EMPTY_PATH, byref(change), c_ulong(sizeof(change))),
        "mount_setattr",
    )


def perf_event_open(attr: bytes, cpu: int) -> int:
    """A perf event of all tasks on one CPU (perf_event_open(2)). ENOSYS on a machine whose number we do not know."""
    number = _SYS_PERF_EVENT_OPEN.get(os.uname().machine)
    if number is None:
        raise OSError(ENOSYS, os.strerror(ENOSYS))
    return _checked(_libc.syscall(number, attr, -1, cpu, -1, c_ulong(_PERF_FLAG_FD_CLOEXEC)), "perf_event_open")


def become_subreaper() -> None:
    """Grandchildren whose parent ends become children of ours (PR_SET_CHILD_SUBREAPER)."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def name_to_handle(directory_fd: int, name: bytes) -> bytes:
    """The file handle of `name` in a directory (of the directory itself for b""), never following a link.

    A handle names the inode for as long as it lives and holds no descriptor.
    """
    handle = _FileHandle(handle_bytes=_HANDLE_BYTES)
    mount_id = c_int()
    flags = 0 if name else AT_EMPTY_PATH
    _checked(_libc.name_to_handle_at(directory_fd, name, byref(handle), byref(mount_id), flags), "name_to_handle_at")
    return bytes(handle)[: 8 + handle.handle_bytes]


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A new descriptor of the inode that `handle` names. ESTALE when the inode is gone. Needs CAP_DAC_READ_SEARCH."""
    native = _FileHandle.from_buffer_copy(handle.ljust(8 + _HANDLE_BYTES, b"\0"))
    return _checked(_libc.open_by_handle_at(mount_fd, byref(native), flags | os.O_CLOEXEC), "open_by_handle_at")


def rename(old_directory_fd: int, old: bytes, new_directory_fd: int, new: bytes, flags: int) -> None:
    _checked(_libc.renameat2(old_directory_fd, old, new_directory_fd, new, flags), "renameat2")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, offset, length), "fallocate")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """The file has none of these bytes' whole pages any more, and is as long as before."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def tmpfs_bytes(fd: int) -> int:
    """What a file takes of memory because it is on a tmpfs; 0 for one elsewhere."""
    return STAT_BLOCK_BYTES * os.fstat(fd).st_blocks if is_on_tmpfs(fd) else 0


def is_on_tmpfs(fd: int) -> bool:
    found = (c_long * (_STATFS_BYTES // sizeof(c_long)))()
    _checked(_libc.fstatfs(fd, byref(found)), "fstatfs")
    return found[0] == _TMPFS_MAGIC


def set_times(fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) of the inode behind a descriptor, O_PATH too. Times are (seconds, nanoseconds or UTIME_*)."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(fd, b"", times, AT_EMPTY_PATH), "utimensat")


def restore_times(fd: int, accessed_ns: int, modified_ns: int) -> None:
    """Have the times that a file was found with."""
    set_times(fd, divmod(accessed_ns, NANOSECONDS), divmod(modified_ns, NANOSECONDS))


def statx(fd: int, mask: int) -> bytearray:
    """struct statx of the inode behind a descriptor, O_PATH too: STATX_BYTES bytes."""
    found = ctypes.create_string_buffer(STATX_BYTES)
    _checked(_libc.statx(fd, b"", AT_EMPTY_PATH, mask, found), "statx")
    return bytearray(found)


def has_xattr(path: str, name: bytes) -> bool:
    """Whether it can be read: False for any error."""
    try:
        os.getxattr(path, name)
    except OSError:
        return False
    return True


def getdents(fd: int, buffer: "Array[ctypes.c_char]", limit: int) -> int:
    """Put whole linux_dirent64 records from the directory's position on into `buffer`; how many bytes, 0 at the end."""
    return _checked(_libc.getdents64(fd, buffer, limit), "getdents64")
