"""What requests about names ask on the FUSE wire, one by one: each unpacks, calls the namespace, packs.

`ops/name_dispatch.py` has them called with the namespace's lock held, and commits and answers.
"""

import os
from collections.abc import Callable, Mapping
from errno import ENOTTY, ERANGE
from struct import Struct

from sharedfs.fuse import dirents, messages
from sharedfs.fuse import protocol as wire
from sharedfs.fuse.protocol import BODY, Opcode
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import syscalls
from sharedfs.ops.attributes import OMIT, Changes
from sharedfs.ops.namespace import Namespace
from sharedfs.storage.inodes import ENTRY_SECONDS
from sharedfs.storage.journal import MOST_REPLY_BYTES
from sharedfs.storage.tree import Found

# FUSE asks for these two only; struct fsxattr and an int of flags. What tmpfs refuses is refused by tmpfs.
_IOCTL_BYTES = {
    syscalls.FS_IOC_GETFLAGS: 8,
    syscalls.FS_IOC_SETFLAGS: 8,
    syscalls.FS_IOC_FSGETXATTR: 28,
    syscalls.FS_IOC_FSSETXATTR: 28,
}
_STATX_NLINK_OFFSET, _STATX_INODE_OFFSET = 16, 32
_NO_ENTRY = messages.ENTRY_OUT.pack(0, 0, ENTRY_SECONDS, *(0 for _ in range(19)))
# fuse_dirent for each length of a name, so that packing pads it.
_DIRENTS = [Struct(f"<QQII{length + 7 & ~7}s") for length in range(256)]

Act = Callable[[int, int, memoryview], bytes]
"""(node, thread_id, request) -> the body of the answer."""


class NameRequests:
    """Call with the namespace's lock held. What raises OSError has changed nothing."""

    def __init__(self, namespace: Namespace) -> None:
        self._store = namespace.store
        self._listings = namespace.listings
        self._names = namespace.names
        self._open_files = namespace.open_files
        self._attributes = namespace.attributes

    @property
    def acts(self) -> Mapping[int, Act]:
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.GETXATTR: self._getxattr,
            Opcode.SETXATTR: self._setxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.IOCTL: self._ioctl,
        }

    # -- look-up and attributes --------------------------------------------------------------------------------------

    def _lookup(self, parent: int, _thread_id: int, request: memoryview) -> bytes:
        try:
            return self._entry(self._names.lookup(parent, bytes(request[BODY:-1])))
        except FileNotFoundError:
            return _NO_ENTRY  # the kernel may remember that there is no such name

    def _getattr(self, inode: int, _thread_id: int, _request: memoryview) -> bytes:
        return self.attributes(inode)

    def _statx(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        _, _, _, _, mask = messages.STATX_IN.unpack_from(request, BODY)
        node, found = self._attributes.of(inode)
        status = syscalls.statx(self._store.path_descriptor(node), mask)
        status[_STATX_NLINK_OFFSET : _STATX_NLINK_OFFSET + 4] = self._store.links(node, found).to_bytes(4, "little")
        status[_STATX_INODE_OFFSET : _STATX_INODE_OFFSET + 8] = inode.to_bytes(8, "little")
        seconds = self._attributes.seconds(node)
        return messages.STATX_OUT.pack(seconds, 0, 0, 0, 0) + bytes(status)

    def _readlink(self, inode: int, _thread_id: int, _request: memoryview) -> bytes:
        store = self._store
        return store.read_symlink(store.node(inode))

    # -- names -------------------------------------------------------------------------------------------------------

    def _mkdir(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        mode, umask = messages.MKDIR_IN.unpack_from(request, BODY)
        name = bytes(request[BODY + messages.MKDIR_IN.size : -1])
        return self._entry(self._names.make_directory(parent, name, mode, umask, *_owner(request), thread_id))

    def _mknod(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        mode, device, umask, _ = messages.MKNOD_IN.unpack_from(request, BODY)
        name = bytes(request[BODY + messages.MKNOD_IN.size : -1])
        return self._entry(self._names.make(parent, name, mode, umask, *_owner(request), device, thread_id))

    def _symlink(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        name, target = messages.names(request, BODY)
        return self._entry(self._names.make_symlink(parent, name, target, *_owner(request), thread_id))

    def _link(self, parent: int, _thread_id: int, request: memoryview) -> bytes:
        (inode,) = messages.LINK_IN.unpack_from(request, BODY)
        return self._entry(self._names.link(inode, parent, bytes(request[BODY + messages.LINK_IN.size : -1])))

    def _unlink(self, parent: int, _thread_id: int, request: memoryview) -> bytes:
        self._names.unlink(parent, bytes(request[BODY:-1]))
        return b""

    def _rmdir(self, parent: int, _thread_id: int, request: memoryview) -> bytes:
        self._names.remove_directory(parent, bytes(request[BODY:-1]))
        return b""

    def _rename(self, parent: int, _thread_id: int, request: memoryview) -> bytes:
        (new_parent,) = messages.RENAME_IN.unpack_from(request, BODY)
        old, new = messages.names(request, BODY + messages.RENAME_IN.size)
        self._names.rename(parent, old, new_parent, new)
        return b""

    def _rename2(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        new_parent, flags, _ = messages.RENAME2_IN.unpack_from(request, BODY)
        old, new = messages.names(request, BODY + messages.RENAME2_IN.size)
        self._names.rename(parent, old, new_parent, new, flags, thread_id)
        return b""

    # -- open files --------------------------------------------------------------------------------------------------

    def open(self, inode: int, thread_id: int, request: memoryview) -> bytes:
        flags, _ = messages.OPEN_IN.unpack_from(request, BODY)
        self._open_files.open(inode, flags)
        self._open_files.expect(inode, flags, thread_id)
        return self._opened(inode, self._open_files.open_for_reading(inode, flags, thread_id))

    def _create(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        flags, mode, umask, _ = messages.CREATE_IN.unpack_from(request, BODY)
        name = bytes(request[BODY + messages.CREATE_IN.size : -1])
        made = self._open_files.create(parent, name, flags, mode, umask, *_owner(request), thread_id)
        self._open_files.expect(made[0].inode, flags, thread_id)
        return self._entry(made) + self._opened(made[0].inode)

    def _tmpfile(self, parent: int, thread_id: int, request: memoryview) -> bytes:
        flags, mode, umask, _ = messages.CREATE_IN.unpack_from(request, BODY)
        made = self._open_files.create_nameless(parent, flags, mode, umask, *_owner(request), thread_id)
        return self._entry(made) + self._opened(made[0].inode)

    def _opened(self, inode: int, reader: TenantId = NOBODY) -> bytes:
        """A handle is the number of the tenant that reads past us with it, NOBODY's when all reads come to us.

        DIRECT_IO: reads and writes come to us, one by one. With PASSTHROUGH, mmap goes to the backing file; reads do so
        with PASSTHROUGH alone.
        """
        backing_id = self._store.node(inode).backing_id
        if backing_id == 0:
            return messages.OPEN_OUT.pack(NOBODY, wire.FOPEN_DIRECT_IO, 0)
        flags = wire.FOPEN_PASSTHROUGH if reader != NOBODY else wire.FOPEN_DIRECT_IO | wire.FOPEN_PASSTHROUGH
        return messages.OPEN_OUT.pack(reader, flags, backing_id)

    def _release(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        handle = messages.RELEASE_IN.unpack_from(request, BODY)[0]
        self._open_files.release(inode, TenantId(handle))
        return b""

    # -- directories -------------------------------------------------------------------------------------------------

    def _opendir(self, inode: int, _thread_id: int, _request: memoryview) -> bytes:
        return messages.OPEN_OUT.pack(self._listings.open(self._store.node(inode)), 0, 0)

    def _releasedir(self, _inode: int, _thread_id: int, request: memoryview) -> bytes:
        self._listings.close(messages.RELEASE_IN.unpack_from(request, BODY)[0])
        return b""

    def _readdir(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        handle, offset, size, flags = messages.READDIR_IN.unpack_from(request, BODY)
        limit = size * dirents.PLAIN_PERCENT // 100
        listing, records = self._listings.read(handle, inode, offset, limit, flags)
        if not records:
            return b""
        starts = dirents.record_starts(records)
        listing.offset = dirents.last_offset(records, starts)
        return dirents.fuse_dirents(records, starts, self._store.tmpfs.root_numbers)

    def _readdirplus(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        handle, offset, size, flags = messages.READDIR_IN.unpack_from(request, BODY)
        limit = min(size, MOST_REPLY_BYTES) * dirents.PLUS_PERCENT // 100
        listing, records = self._listings.read(handle, inode, offset, limit, flags)
        store, parts = self._store, []
        for number, next_offset, kind, name in dirents.entries(records):
            if name in messages.DOTS:  # the kernel takes no reference to these
                parts.append(_NO_ENTRY)
            else:
                node, found = store.lookup(listing.node, name)
                store.refer(node)
                parts.append(self._entry((node, found)))
            shown = store.tmpfs.root_numbers.get(number, number)
            parts.append(_DIRENTS[len(name)].pack(shown, next_offset, len(name), kind, name))
            listing.offset = next_offset
        return b"".join(parts)

    # -- extended attributes and inode flags -------------------------------------------------------------------------

    def _getxattr(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        size, _ = messages.GETXATTR_IN.unpack_from(request, BODY)
        value = self._attributes.xattr(inode, bytes(request[BODY + messages.GETXATTR_IN.size : -1]))
        if size == 0:
            return messages.GETXATTR_OUT.pack(len(value), 0)
        if len(value) > size:
            raise OSError(ERANGE, os.strerror(ERANGE))
        return value

    def _setxattr(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        size, flags, fuse_flags, _ = messages.SETXATTR_IN.unpack_from(request, BODY)
        body = bytes(request[BODY + messages.SETXATTR_IN.size :])
        name, _, value = body.partition(b"\0")
        drop_set_gid = bool(fuse_flags & messages.SETXATTR_ACL_KILL_SGID)
        self._attributes.set_xattr(inode, name, value[:size], flags, drop_set_gid=drop_set_gid)
        return b""

    def _removexattr(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        self._attributes.remove_xattr(inode, bytes(request[BODY:-1]))
        return b""

    def _ioctl(self, inode: int, _thread_id: int, request: memoryview) -> bytes:
        _, _, command, _, in_bytes, out_bytes = messages.IOCTL_IN.unpack_from(request, BODY)
        argument_bytes = _IOCTL_BYTES.get(command)
        if argument_bytes is None:
            raise OSError(ENOTTY, os.strerror(ENOTTY))
        start = BODY + messages.IOCTL_IN.size
        argument = bytearray(bytes(request[start : start + in_bytes]).ljust(argument_bytes, b"\0"))
        self._attributes.inode_flags(inode, command, argument)
        return messages.IOCTL_OUT.pack(0, 0, 0, 0) + bytes(argument[:out_bytes])

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _entry(self, answer: Found) -> bytes:
        node, found = answer
        seconds = self._attributes.seconds(node)
        attributes = messages.attributes(node.inode, self._store.links(node, found), found)
        return messages.ENTRY_OUT.pack(node.inode, 0, ENTRY_SECONDS, seconds, 0, 0, *attributes)

    def attributes(self, inode: int) -> bytes:
        node, found = self._attributes.of(inode)
        seconds = self._attributes.seconds(node)
        attributes = messages.attributes(inode, self._store.links(node, found), found)
        return messages.ATTR_OUT.pack(seconds, 0, 0, *attributes)


def _owner(request: memoryview) -> tuple[int, int]:
    _, _, _, _, uid, gid, _, _, _ = wire.IN_HEADER.unpack_from(request)
    return uid, gid


def changes_in(request: memoryview) -> Changes:
    """What a SETATTR asks for."""
    fields = messages.SETATTR_IN.unpack_from(request, BODY)
    valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    return Changes(
        mode=mode if valid & messages.FATTR_MODE else None,
        uid=uid if valid & messages.FATTR_UID else -1,
        gid=gid if valid & messages.FATTR_GID else -1,
        size=size if valid & messages.FATTR_SIZE else None,
        by_handle=bool(valid & messages.FATTR_FH),
        atime=_time(valid, messages.FATTR_ATIME, messages.FATTR_ATIME_NOW, atime, atime_ns),
        mtime=_time(valid, messages.FATTR_MTIME, messages.FATTR_MTIME_NOW, mtime, mtime_ns),
    )


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if valid & now:
        return 0, syscalls.UTIME_NOW
    return (seconds, nanoseconds) if valid & given else OMIT
