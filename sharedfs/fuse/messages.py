"""The FUSE messages about names and attributes that we read or write ourselves. Layouts are those of linux/fuse.h.

Bodies follow the request's header, so they are unpacked at offset BODY; names end with a zero byte.
"""

import os
from struct import Struct

from sharedfs.fuse.protocol import BODY, IN_HEADER, Opcode
from sharedfs.linux.syscalls import NANOSECONDS

FORGET_IN = Struct("<Q")  # nlookup
BATCH_FORGET_IN = Struct("<II")  # count, (padding); that many FORGET_ONE follow
FORGET_ONE = Struct("<QQ")  # nodeid, nlookup
MKNOD_IN = Struct("<IIII")  # mode, rdev, umask, (padding); the name. rdev is as stat(2) has it, for numbers that fit
LINK_IN = Struct("<Q")  # oldnodeid; the new name
MKDIR_IN = Struct("<II")  # mode, umask; the name
RENAME_IN = Struct("<Q")  # newdir; both names
RENAME2_IN = Struct("<QII")  # newdir, flags, (padding); both names
OPEN_IN = Struct("<II")  # flags, open_flags
CREATE_IN = Struct("<IIII")  # flags, mode, umask, open_flags; the name. TMPFILE's, too
RELEASE_IN = Struct("<Q")  # fh, (flags, release_flags, lock_owner)
READDIR_IN = Struct("<QQI4x8xI")  # fh, offset, size, (read_flags, lock_owner,) flags of the open file, (padding)
SETXATTR_IN = Struct("<IIII")  # size, flags, setxattr_flags, (padding), as INIT_SETXATTR_EXT has it; name, value
GETXATTR_IN = Struct("<II")  # size, (padding); name
GETXATTR_OUT = Struct("<II")  # size, (padding): the answer to size 0
IOCTL_IN = Struct("<QIIQII")  # fh, flags, cmd, arg, in_size, out_size; the input
IOCTL_OUT = Struct("<iIII")  # result, flags, in_iovs, out_iovs; the output
STATX_IN = Struct("<IIQII")  # getattr_flags, (reserved), fh, sx_flags, sx_mask
STATX_OUT = Struct("<QIIQQ")  # attr_valid, attr_valid_nsec, flags, (spare); a struct statx follows

# fuse_setattr_in: valid, (padding), fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, (unused4), uid,
# gid, (unused5). Times before 1970 are negative.
SETATTR_IN = Struct("<IIQQQqqqIIIIIIII")
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = (1 << bit for bit in range(6))
FATTR_FH, FATTR_ATIME_NOW, FATTR_MTIME_NOW = 1 << 6, 1 << 7, 1 << 8

# fuse_open_out: fh, open_flags, backing_id. A CREATE reply has fuse_entry_out before it.
OPEN_OUT = Struct("<QIi")

# fuse_attr: ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
_ATTR = "QQQqqqIIIIIIIIII"
# fuse_attr_out: attr_valid, attr_valid_nsec, (padding), fuse_attr
ATTR_OUT = Struct("<QII" + _ATTR)
# fuse_entry_out: nodeid, generation, entry_valid, attr_valid, their nanoseconds, fuse_attr
ENTRY_OUT = Struct("<QQQQII" + _ATTR)

SETXATTR_ACL_KILL_SGID = 1 << 0

DOTS = (b".", b"..")
"""Entries of every directory that are no names of their own."""


def attributes(inode: int, links: int, found: os.stat_result) -> tuple[int, ...]:
    """The fields of fuse_attr."""
    atime, atime_ns = divmod(found.st_atime_ns, NANOSECONDS)
    mtime, mtime_ns = divmod(found.st_mtime_ns, NANOSECONDS)
    ctime, ctime_ns = divmod(found.st_ctime_ns, NANOSECONDS)
    return (
        inode,
        found.st_size,
        found.st_blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        found.st_mode,
        links,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_blksize,
        0,
    )


def names(request: memoryview, start: int) -> list[bytes]:
    """The names that end a request, from offset `start` on."""
    return bytes(request[start:-1]).split(b"\0")


def forgets(request: memoryview) -> tuple[int, int, list[tuple[int, int]]]:
    """What a FORGET or BATCH_FORGET says: its number, its opcode, and (inode, references dropped)."""
    _, opcode, unique, inode, _, _, _, _, _ = IN_HEADER.unpack_from(request)
    if opcode == Opcode.FORGET:
        return unique, opcode, [(inode, FORGET_IN.unpack_from(request, BODY)[0])]
    count, _ = BATCH_FORGET_IN.unpack_from(request, BODY)
    start = BODY + BATCH_FORGET_IN.size
    return unique, opcode, list(FORGET_ONE.iter_unpack(request[start : start + count * FORGET_ONE.size]))
