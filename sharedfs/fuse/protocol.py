"""The FUSE messages that we read or write ourselves. Layouts and numbers are those of linux/fuse.h.

Only what the channel and the data path touch is here, and in `messages.py` what the namespace does; everything else
passes through to libfuse, looked at only as far as `validation.py` does.
"""

from enum import IntEnum
from struct import Struct

ROOT_NODE = 1


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


FORGETS = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})
"""What has no answer and is not sent again."""
UNANSWERED = FORGETS | {Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
"""Nobody waits for an answer to these."""

# fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding. `pid` is the calling thread's id.
IN_HEADER = Struct("<IIQQIIIHH")
UNIQUE_RESEND = 1 << 63  # of a request that is sent again after NOTIFY_RESEND
UNIQUE_INTERRUPT = 1 << 0  # of the INTERRUPT of the request whose number has not got this bit
# fuse_out_header: len, error (a negative errno), unique
OUT_HEADER = Struct("<IiQ")

BODY = IN_HEADER.size
"""Where the body of a request begins: the layouts below are unpacked there."""
READ_IN = Struct(
    "<QQII8xI"
)  # fuse_read_in: fh, offset, size, read_flags, (lock_owner,) flags of the open file, (padding)
WRITE_IN = Struct("<QQII")  # fuse_write_in: fh, offset, size, write_flags, (lock_owner, flags, padding)
WRITE_DATA_OFFSET = BODY + 40  # the data follows the whole fuse_write_in
WRITE_OUT = Struct("<II")  # fuse_write_out: size, padding
FALLOCATE_IN = Struct("<QQQI")  # fuse_fallocate_in: fh, offset, length, mode, (padding)
LSEEK_IN = Struct("<QqI")  # fuse_lseek_in: fh, offset (as the caller gave it, so signed), whence, (padding)
LSEEK_OUT = Struct("<Q")
COPY_FILE_RANGE_IN = Struct("<QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPIES = frozenset({Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64})
"""Two forms of one request. A fuse_write_out answers both, for its size and padding are the 64 bits of the other."""

READ_LOCKOWNER = 1 << 1  # set for read(2) on a DIRECT_IO file; not set when the kernel fills its page cache
WRITE_KILL_SUIDGID = 1 << 2

# fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth
INIT_OUT = Struct("<IIIIHHIIHHII")
INIT_IN = Struct("<IIIII")  # fuse_init_in: major, minor, max_readahead, flags, flags2

# INIT flags; bits from 32 on are in flags2.
INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_EXPORT_SUPPORT = 1 << 4
INIT_DONT_MASK = 1 << 6
INIT_DO_READDIRPLUS = 1 << 13
INIT_READDIRPLUS_AUTO = 1 << 14
INIT_HANDLE_KILLPRIV = 1 << 19
INIT_POSIX_ACL = 1 << 20
INIT_MAX_PAGES = 1 << 22
INIT_SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
INIT_PASSTHROUGH = 1 << 37
INIT_HAS_RESEND = 1 << 39
INIT_ALLOW_IDMAP = 1 << 40

# Notifications: in the place of an error, with unique 0.
NOTIFY_INVAL_INODE = 2
NOTIFY_RESEND = 7
INVAL_INODE_OUT = Struct("<Qqq")  # fuse_notify_inval_inode_out: ino, off (negative: attributes only), len

NOTIFY_DELETE = 6
DELETE_OUT = Struct("<QQII")  # fuse_notify_delete_out: parent, child, namelen, padding; the name and a zero follow

FOPEN_DIRECT_IO = 1 << 0
FOPEN_PASSTHROUGH = 1 << 7

MAX_WRITE = 1 << 20
PAGES_PER_WRITE = MAX_WRITE // 4096
# What libfuse reads at most, too: the kernel fills a batch of forgets up to the reader's buffer.
REQUEST_BYTES = MAX_WRITE + 4096
