"""Names: looking one up, and making and removing them."""

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.ledger.tenant import NOBODY
from sharedfs.linux import syscalls
from sharedfs.ops.content import Content
from sharedfs.ops.references import References
from sharedfs.storage.tree import Found, Store


class Names:
    """Call with the store's lock held."""

    def __init__(self, store: Store, books: Books, callers: Callers, references: References, content: Content) -> None:
        self._store = store
        self._books = books
        self._callers = callers
        self._references = references
        self._content = content
        self._room = store.tmpfs.room

    def lookup(self, parent: int, name: bytes) -> Found:
        node, found = self._store.lookup(self._store.node(parent), name)
        self._store.refer(node)
        return node, found

    def make(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, device: int, thread_id: int
    ) -> Found:
        maker = self._callers.tenant_of(thread_id)
        self._room.afford()
        node, found = self._store.make(self._store.node(parent), name, mode, umask, uid, gid, device)
        self._store.made(node, maker)
        return node, found

    def make_directory(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, thread_id: int
    ) -> Found:
        maker = self._callers.tenant_of(thread_id)
        self._room.afford()
        node, found = self._store.make_directory(self._store.node(parent), name, mode, umask, uid, gid)
        self._store.made(node, maker)
        return node, found

    def make_symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int, thread_id: int) -> Found:
        tenant = self._callers.tenant_of(thread_id)
        self._room.afford(len(target))
        node, found = self._store.make_symlink(self._store.node(parent), name, target, uid, gid)
        if found.st_blocks:  # tmpfs keeps a long target in a page
            self._books.pages.charge(node.inode, 0, found.st_blocks * syscalls.STAT_BLOCK_BYTES, tenant)
        self._store.made(node, tenant)
        return node, found

    def link(self, inode: int, parent: int, name: bytes) -> Found:
        node = self._store.node(inode)
        self._content.refuse_given_way(node)
        self._store.stat(node)  # what wants a descriptor of it fails before there is a name
        if inode not in self._store.removed:  # else it is a nameless file, which was counted when it was made
            self._room.afford()
        self._store.link(node, self._store.node(parent), name)
        self._store.refer(node)
        return node, self._store.stat(node)

    def unlink(self, parent: int, name: bytes) -> None:
        self._references.ended(self._store.unlink(self._store.node(parent), name))

    def unlink_unasked(self, parent: int, name: bytes) -> None:
        """As `unlink` of a last name, on our own account: nobody is answered, so no journal is kept."""
        node = self._store.set_aside(self._store.node(parent), name)
        if node.lookups == 0:
            self._references.forget(node.inode, 0)

    def remove_directory(self, parent: int, name: bytes) -> None:
        self._store.remove_directory(self._store.node(parent), name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, thread_id: int = 0
    ) -> None:
        """With RENAME_WHITEOUT the thread makes an inode, which has the old name."""
        old, makes_one = self._store.node(parent), flags & syscalls.RENAME_WHITEOUT
        maker = self._callers.tenant_of(thread_id) if makes_one else NOBODY
        if makes_one:
            self._room.afford()
        self._references.ended(self._store.rename(old, name, self._store.node(new_parent), new_name, flags))
        if maker != NOBODY:
            self._store.note_maker(old, name, maker)
