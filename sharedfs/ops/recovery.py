"""What a daemon does about the one that was killed before it, while nobody can look: the journal's other half (I8).

A committed request is answered again: the kernel takes the answer if it has none and says ENOENT if it has. What was
only intended is completed where it was done, undone where it may be half done, and left where nothing was; what is not
answered here is sent again by the kernel, and is then a request like any other.

| intent         | fields                                              | done when                          | then     |
|----------------|-----------------------------------------------------|------------------------------------|----------|
| MAKE           | directory, name                                     | the name is there                  | undone   |
| LINK           | directory, name, inode                              | the name is there                  | undone   |
| LINK_NAMELESS  | directory, name, inode                              | the name is there                  | undone   |
| REMOVE         | directory, name, inode                              | the name is not that inode's       | answered |
| RENAME         | directory, name, inode, new directory, new name,    | the new name is that inode's       | answered |
|                | other: the inode that had it, if it is to go        | (else: both names are as before)   | undone   |
| MAKE_XATTR     | inode, name                                         | the attribute is there             | undone   |
| REMOVE_XATTR   | inode, name                                         | the attribute is not there         | answered |
| EXTEND         | inode, directory: old size, other: new size,        | the size is the new one            | reserved |
|                | new directory: the thread that asked                |                                    |          |
| CUT            | inode, other: new size                              | the size is the new one            | booked   |

What is reserved or booked is asked once more, to no effect, unless its caller was killed. Nobody saw what is undone.
A FORGET is ended from the request as it was read.
"""

import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EIO, ENOENT, ESTALE

from sharedfs.fuse import protocol as wire
from sharedfs.fuse.messages import forgets
from sharedfs.fuse.passthrough import BackingFiles
from sharedfs.linux import syscalls
from sharedfs.ops.namespace import Namespace
from sharedfs.storage.journal import PUMP, Commit, Intent, Journal, Kind, Slot
from sharedfs.storage.node import Node
from sharedfs.storage.tree import NAMELESS

MOST_DEATHS = 5
"""A request that has taken so many daemons along fails. Fewer than the keeper bears (`daemons.MOST_FAILURES`)."""

log = logging.getLogger("sharedfs")

Reply = Callable[[int, int, bytes], None]
"""(unique, errno, body): answer a request; one that has its answer is no error."""


def recover(namespace: Namespace, journal: Journal, backing: BackingFiles | None, reply: Reply, *, died: bool) -> None:
    """Bring the store, the node table and the kernel to agree. Called once, before any request is served.

    `died`: the daemon before this one ended by itself; it was not replaced.
    `backing` is None for a connection without passthrough: the kernel then refuses to hear of backing ids (EPERM).
    """
    recovery = _Recovery(namespace, reply)
    with namespace.lock:
        for slot in journal.slots:
            recovery.end(slot)
        if backing is not None:
            # What is numbered higher was made for requests that were not committed: one for each daemon that died so.
            last = journal.slots[PUMP].last_backing
            for backing_id in range(last + 1, last + 1 + MOST_DEATHS):
                backing.close(backing_id)
        recovery.forget_the_rest(memoryview(journal.request))
        if died:
            recovery.refuse_what_kills(journal)
        recovery.sweep_removed()
        journal.forget_request()


class _Recovery:
    def __init__(self, namespace: Namespace, reply: Reply) -> None:
        self._namespace = namespace
        self._store = namespace.store
        self._reply = reply

    def end(self, slot: Slot) -> None:
        commit, intent = slot.committed(), slot.intent()
        if commit is not None:
            log.info("request %d was committed: answering it again", commit.unique)
            self._answer(commit)
        elif intent is not None:
            done = self._complete(intent)
            log.info("request %d: %s was %s", intent.unique, intent.kind.name, "done" if done else "not done")
            if done:
                self._reply(intent.unique, 0, b"")
        slot.clear()

    def _answer(self, commit: Commit) -> None:
        self._namespace.open_files.committed(commit.unique & ~wire.UNIQUE_RESEND, commit.words, commit.aftermath)
        self._reply(commit.unique, commit.error, commit.reply)

    # -- what was only intended --------------------------------------------------------------------------------------

    def _complete(self, intent: Intent) -> bool:
        """Whether the operation is done, and its answer an empty one; if not, it is as if it had not begun."""
        match intent.kind:
            case Kind.MAKE | Kind.LINK | Kind.LINK_NAMELESS:
                self._undo_name(intent)
            case Kind.REMOVE:
                return self._is_removed(intent)
            case Kind.RENAME:
                return self._is_renamed(intent)
            case Kind.MAKE_XATTR:
                with suppress(OSError):  # it was not made
                    os.removexattr(self._path(intent.inode), intent.name)
            case Kind.REMOVE_XATTR:
                return intent.name not in map(os.fsencode, os.listxattr(self._path(intent.inode)))
            case Kind.EXTEND:
                self._reserve(intent)
            case Kind.CUT:
                node = self._store.find(intent.inode)
                if self._store.stat(node).st_size == intent.other:
                    self._namespace.sizes.cut_before(node, intent.other)
        return False

    def _undo_name(self, intent: Intent) -> None:
        directory = self._directory(intent.directory)
        try:
            found = os.stat(intent.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if intent.kind is Kind.LINK_NAMELESS:
            entry = self._store.tmpfs.removed_entry(intent.inode, NAMELESS)
            os.rename(intent.name, entry, src_dir_fd=directory, dst_dir_fd=self._store.tmpfs.removed_fd)
            return
        if intent.kind is Kind.MAKE:  # the name goes last: who is killed here finds it
            self._namespace.references.gone(found.st_ino)
            self._store.drop(found.st_ino)
        (os.rmdir if stat.S_ISDIR(found.st_mode) else os.unlink)(intent.name, dir_fd=directory)

    def _is_removed(self, intent: Intent) -> bool:
        if self._inode_at(intent.directory, intent.name) == intent.inode:
            return False
        self._account_for(intent.inode)
        return True

    def _is_renamed(self, intent: Intent) -> bool:
        entry = self._store.tmpfs.removed_entry(intent.other, intent.new_name)
        removed_fd = self._store.tmpfs.removed_fd
        if self._inode_at(intent.new_directory, intent.new_name) == intent.inode:
            if intent.other and self._inode_at(intent.directory, intent.name) == intent.other:  # they changed places
                directories = self._directory(intent.directory), self._directory(intent.new_directory)
                syscalls.rename(directories[0], intent.name, directories[1], intent.new_name, syscalls.RENAME_EXCHANGE)
                return False
            if intent.other:
                self._account_for(intent.other)
            return True
        with suppress(FileNotFoundError):  # the one that had the name was not set aside
            new_directory = self._directory(intent.new_directory)
            os.rename(entry, intent.new_name, src_dir_fd=removed_fd, dst_dir_fd=new_directory)
        return False

    def _reserve(self, intent: Intent) -> None:
        node = self._store.find(intent.inode)
        old_size, new_size, thread_id = intent.directory, intent.other, intent.new_directory
        if self._store.stat(node).st_size == new_size:
            self._namespace.sizes.reserve_again(node, old_size, new_size, thread_id)

    # -- what has no answer ------------------------------------------------------------------------------------------

    def forget_the_rest(self, request: memoryview) -> None:
        begun = self._store.slot.begun_forget()
        length, opcode, _, _, _, _, _, _, _ = wire.IN_HEADER.unpack_from(request)
        if opcode in wire.FORGETS:
            if begun is not None:
                self._namespace.references.forget(*begun)
                self._store.slot.end_begun_forget()
            unique, _, dropped = forgets(request[:length])
            self._namespace.references.forget_all(unique, dropped)

    def refuse_what_kills(self, journal: Journal) -> None:
        """Nobody's request may end the pool: one over which daemon after daemon dies is answered with EIO.

        A death counts where the daemon had begun with the request itself: one that was replaced, or that died before it
        read anything, says nothing about it. A request that has its answer takes no second one.
        """
        opcode, unique = journal.under_way()
        if not unique:
            return
        number, before = unique & ~wire.UNIQUE_RESEND, journal.deaths.tolist()[:2]
        deaths = before[1] + 1 if before[0] == number else 1
        journal.deaths[0], journal.deaths[1] = number, deaths
        if deaths >= MOST_DEATHS and opcode not in wire.UNANSWERED:
            log.error("%d daemons have died with request %d (opcode %d): it fails with EIO", deaths, number, opcode)
            self._reply(unique, EIO, b"")

    def sweep_removed(self) -> None:
        """What is in removed/ waits for the kernel to forget it; what the kernel does not know never had its answer."""
        names = self._store.tmpfs.removed_names()
        self._store.removed.clear()
        self._store.removed.update(names)
        for inode in names:
            if self._store.lookups_of(inode) == 0:
                self._namespace.references.forget(inode, 0)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _account_for(self, inode: int) -> None:
        """An inode lost a name: when it was the last one, and nobody knows it, the books are to close its account."""
        try:
            self._store.find(inode)
        except OSError as error:
            if error.errno != ESTALE:
                raise
            self._store.drop(inode)
            self._namespace.references.gone(inode)

    def _directory(self, inode: int) -> int:
        return self._store.path_descriptor(self._node(inode))

    def _path(self, inode: int) -> str:
        return self._store.descriptor_path(self._node(inode))

    def _node(self, inode: int) -> Node:
        return self._store.find(inode)

    def _inode_at(self, directory: int, name: bytes) -> int | None:
        try:
            return os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False).st_ino
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return None
