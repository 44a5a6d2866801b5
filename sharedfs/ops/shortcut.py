"""What the shortcut in C is given: the one place that says what of Python's objects `fastpath.c` reads.

Those that it looks at for each request it holds on to: they are changed in place and never replaced.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.fuse.protocol import MAX_WRITE
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.storage.inodes import ENTRY_SECONDS
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store


class HasVerifiedAt(Protocol):
    verified_at: int


class HasSequence(Protocol):
    @property
    def sequence(self) -> int: ...


class HasAt(Protocol):
    at: int


class Given(NamedTuple):
    """The argument of `FastPath`, which takes the fields by their place."""

    device_fd: int
    """/dev/fuse, and no answer to a READ has more bytes than `max_read`."""
    max_read: int
    entry_seconds: int
    """So long the kernel may keep what it is told of a name."""

    nodes: dict[int, Node]
    """By inode. Read of a node: `set_id` and `may_be_mapped`."""
    paths: dict[int, int]
    """Inode -> an O_PATH descriptor."""
    removed: dict[int, bytes]
    """Inode -> the name of a file that has no other."""
    files: dict[int, int]
    """Inode -> a descriptor to read and write."""

    callers: HasVerifiedAt
    verified: dict[int, TenantId]
    """Thread -> tenant, as long as `callers.verified_at` is the sum of `heads`."""
    heads: tuple[memoryview, ...]
    """Eight bytes of each CPU that move when a thread has changed its cgroup or ended."""

    ledger: HasSequence
    settled: HasAt
    settled_bytes: dict[TenantId, dict[int, int]]
    """Tenant -> file -> bytes that need no line in the books, as long as `settled.at` is `ledger.sequence`."""
    touch: Callable[[int, int, int, TenantId], None]
    charge: Callable[[int, int, int, TenantId], None]
    """A line in the books: inode, first byte, end, tenant."""
    left: dict[TenantId, int]
    """Bytes that tenants may still make resident; a tenant that is not there may make any."""
    above: dict[TenantId, tuple[str, ...]]
    """The cgroups at and above tenants, by path."""
    left_above: dict[str, int]
    """Bytes that all tenants at and below a cgroup may still make resident; one that is not there bounds nobody."""
    credit: memoryview
    """Eight bytes, writable: how many may be made before the limits of memory are looked at."""


def given(
    device_fd: int, store: Store, files: dict[int, int], callers: Callers, events: TaskEvents, books: Books
) -> Given:
    return Given(
        device_fd=device_fd,
        max_read=MAX_WRITE,
        entry_seconds=ENTRY_SECONDS,
        nodes=store.nodes,
        paths=store.path_descriptors,
        removed=store.removed,
        files=files,
        callers=callers,
        verified=callers.verified,
        heads=events.heads,
        **books.for_shortcut()._asdict(),
        credit=store.tmpfs.room.credit,
    )
