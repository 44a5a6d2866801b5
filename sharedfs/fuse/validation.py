"""What a request must be before anybody reads it: as long as it says, with all of its fields and names. Pure.

The kernel sends nothing else. It is checked all the same, in one place, so that no parser behind it (ours or libfuse's)
ever reads beyond a message or takes a path for a name, whatever the kernel that is to come may send.
Layouts are those of linux/fuse.h.
"""

from errno import EINVAL, EIO, ENAMETOOLONG

from sharedfs.fuse import messages as names
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import BODY, Opcode
from sharedfs.linux.syscalls import LONGEST_NAME_BYTES

# The fields of a request, in bytes. More may follow: structs have grown with the protocol.
_FIELDS: dict[int, int] = {
    Opcode.FORGET: names.FORGET_IN.size,
    Opcode.GETATTR: 16,
    Opcode.SETATTR: 88,
    Opcode.OPEN: names.OPEN_IN.size,
    Opcode.READ: 40,
    Opcode.RELEASE: 24,
    Opcode.FSYNC: 16,
    Opcode.LISTXATTR: 8,
    Opcode.FLUSH: 24,
    Opcode.INIT: 16,
    Opcode.OPENDIR: names.OPEN_IN.size,
    Opcode.READDIR: 40,
    Opcode.RELEASEDIR: 24,
    Opcode.FSYNCDIR: 16,
    Opcode.ACCESS: 8,
    Opcode.FALLOCATE: 32,
    Opcode.READDIRPLUS: 40,
    Opcode.LSEEK: 24,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.STATX: names.STATX_IN.size,
    Opcode.COPY_FILE_RANGE_64: 56,
}

# The same, where as many names end the request: each one component, and none else.
_NAMES: dict[int, tuple[int, int]] = {
    Opcode.LOOKUP: (0, 1),
    Opcode.MKNOD: (16, 1),
    Opcode.MKDIR: (names.MKDIR_IN.size, 1),
    Opcode.UNLINK: (0, 1),
    Opcode.RMDIR: (0, 1),
    Opcode.RENAME: (names.RENAME_IN.size, 2),
    Opcode.LINK: (8, 1),
    Opcode.CREATE: (names.CREATE_IN.size, 1),
    Opcode.RENAME2: (names.RENAME2_IN.size, 2),
}

# The same, where the texts are no names in a directory: those of xattrs, and what the kernel calls an O_TMPFILE ("/").
_TEXTS: dict[int, tuple[int, int]] = {
    Opcode.GETXATTR: (names.GETXATTR_IN.size, 1),
    Opcode.REMOVEXATTR: (0, 1),
    Opcode.TMPFILE: (names.CREATE_IN.size, 1),
}


def fault_of(request: memoryview) -> int:
    """The errno that a request deserves for what it is, 0 for none. O(1), and O(names) where there are some.

    `request` has a whole header at least.
    """
    length, opcode, *_ = wire.IN_HEADER.unpack_from(request)
    if length != len(request):
        return EIO
    fields = _FIELDS.get(opcode)
    if fields is not None:
        return 0 if length >= BODY + fields else EINVAL
    named = _NAMES.get(opcode)
    shape = _TEXTS.get(opcode) if named is None else named
    if shape is None:
        other = _OTHERS.get(opcode)
        return 0 if other is None or other(request) else EINVAL
    texts = _texts(request, *shape)
    for text in texts:
        if named is not None and (b"/" in text or (text in names.DOTS and opcode != Opcode.LOOKUP)):
            return EINVAL
        if len(text) > LONGEST_NAME_BYTES:
            return ENAMETOOLONG
    return 0 if texts else EINVAL


def _texts(request: memoryview, fields: int, count: int) -> list[bytes]:
    """The texts that end a request, none when they are not `count`, each of a byte at least and ended by a zero."""
    texts = bytes(request[BODY + fields :]).split(b"\0")
    return texts if len(texts) == count + 1 and not texts.pop() and b"" not in texts else []


def _is_symlink(request: memoryview) -> bool:
    name, target = _texts(request, 0, 2) or (b"/", b"")
    return b"/" not in name and name not in names.DOTS and len(name) <= LONGEST_NAME_BYTES and bool(target)


def _is_write(request: memoryview) -> bool:
    if len(request) < wire.WRITE_DATA_OFFSET:
        return False
    _, _, size, _ = wire.WRITE_IN.unpack_from(request, BODY)
    return bool(len(request) == wire.WRITE_DATA_OFFSET + size)


def _is_setxattr(request: memoryview) -> bool:
    if len(request) < BODY + names.SETXATTR_IN.size:
        return False
    size, *_ = names.SETXATTR_IN.unpack_from(request, BODY)
    name, end, value = bytes(request[BODY + names.SETXATTR_IN.size :]).partition(b"\0")
    return bool(0 < len(name) <= LONGEST_NAME_BYTES and end and len(value) == size)


def _is_ioctl(request: memoryview) -> bool:
    if len(request) < BODY + names.IOCTL_IN.size:
        return False
    in_bytes = names.IOCTL_IN.unpack_from(request, BODY)[4]
    return bool(len(request) == BODY + names.IOCTL_IN.size + in_bytes)


def _is_batch_forget(request: memoryview) -> bool:
    if len(request) < BODY + names.BATCH_FORGET_IN.size:
        return False
    count, _ = names.BATCH_FORGET_IN.unpack_from(request, BODY)
    return bool(len(request) == BODY + names.BATCH_FORGET_IN.size + count * names.FORGET_ONE.size)


_OTHERS = {
    Opcode.SYMLINK: _is_symlink,
    Opcode.WRITE: _is_write,
    Opcode.SETXATTR: _is_setxattr,
    Opcode.IOCTL: _is_ioctl,
    Opcode.BATCH_FORGET: _is_batch_forget,
}
