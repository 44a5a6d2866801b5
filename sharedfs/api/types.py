"""The narrow waist between a pool and the controller: what the feed says, as plain typed data.

Tenants are listed once and referred to by `id`; id 0 is nobody. All sizes are bytes. `sequence` rises with every change
of the holdings, so an unchanged number means an unchanged answer.
"""

from enum import IntEnum, StrEnum

from pydantic import BaseModel, ConfigDict, Field

NOBODY = 0
NOBODY_PATH = "/(nobody)"
"""In a trace, of the tenant that allocates what no live tenant is known to have allocated."""
NO_LIMIT = -1
LAST_TRACE_PAGE = (1 << 40) - 1
"""Of a file, in a trace: 4 PiB. A range that is to reach to the end ends here."""


class Event(IntEnum):
    """What a trace tells (docs/traces.md). The first six happen to pages; of these the first four are a tenant's."""

    ALLOCATE = 0
    TOUCH = 1
    MAP = 2
    UNMAP = 3
    FREE = 4
    SWAP = 5
    START = 6
    EXIT = 7
    FILE = 8


class DataPathKind(StrEnum):
    """How read(2) and mmap(2) reach a pool's files."""

    EXACT = "exact"
    EXACT_AND_MAPPED = "exact+passthrough"
    FAST_AND_MAPPED = "fast+passthrough"

    @property
    def has_passthrough(self) -> bool:
        """Whether files can be mapped shared."""
        return self is not DataPathKind.EXACT


class Engine(StrEnum):
    """What answers frequent requests."""

    C = "C"
    PYTHON = "Python"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # most commands use one of them


class _Answer(_Frozen):
    """What is read by who may be of an earlier version than the answer: it leaves out what it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class _Body(_Frozen):
    """What comes with a request: FastAPI wants its type built."""

    model_config = ConfigDict(defer_build=False)


class TenantRef(_Answer):
    """A live tenant: its cgroup's path as the host sees it, and the inode number of the cgroup's directory.

    `even_bytes` is its even share of the pool: each page divided by its payers. What allowances are measured by.
    `handed_bytes` and `added_bytes` are counted up since the daemon started, and tell what it came to use by no act of
    its own: pages that the operator made it the owner of, and others' pages (`accounting/unasked.py`).
    """

    id: int
    path: str
    inode: int
    even_bytes: int = 0
    handed_bytes: int = 0
    added_bytes: int = 0


class ClassHolding(_Answer):
    """One sharing class and the bytes in it.

    `owner` allocated the pages. `payers` are the owner and those who touched the pages lately or have them `mapped`.
    `foreign` bytes were charged by the kernel to their owner instead of the pool. `swapped` bytes are in swap and take
    no memory: a class that has both is two of these.
    """

    owner: int
    payers: tuple[int, ...]
    mapped: tuple[int, ...]
    foreign: bool
    bytes: int
    swapped: bool = False


class DetachedPart(_Answer):
    """Bytes that are in no file any more, for somebody holds the pages, and the tenant that pays for them."""

    tenant: int
    bytes: int


class InodesPart(_Answer):
    """Bytes that names and inodes take beyond those that come with the size, and the tenant that made them."""

    tenant: int
    bytes: int


class Holdings(_Answer):
    """A pool's books: the sum of `bytes` over `classes` is `resident_bytes` (I1), `swapped_bytes` among them.

    What is no page of a file comes on top: `detached_bytes`, the sum over `detached`, pages that are in no file any
    more; and `inode_bytes`, the sum over `inodes`. `size_bytes` is what the pool was given; what limits of memory leave
    it may be less.
    """

    pool: str
    sequence: int
    resident_bytes: int
    foreign_bytes: int
    swapped_bytes: int = 0
    size_bytes: int | None = None
    tenants: tuple[TenantRef, ...]
    classes: tuple[ClassHolding, ...]
    detached_bytes: int = 0
    detached: tuple[DetachedPart, ...] = ()
    inode_bytes: int = 0
    inodes: tuple[InodesPart, ...] = ()


class FileHoldings(_Answer):
    """The part of the books that is one file. `path` is relative to the pool's root.

    `opened` are the tenants that have it open for fast reading, and use all of it for that. `by_range` are those that
    had pages mapped which nobody saw in their page tables: of these all in the mapping's range count as touched.
    """

    path: str
    inode: int
    size_bytes: int
    resident_bytes: int
    classes: tuple[ClassHolding, ...]
    opened: tuple[int, ...] = ()
    by_range: tuple[int, ...] = ()


BODY_BYTES = 64 << 10
"""The most that a request's body may have: a service reads no more of it."""

FILES_OF_A_PAGE = 1000
"""The most files in one answer. 1000 files take some milliseconds of the daemon's time, and half a MiB."""


class FilesOfTenant(_Answer):
    """Files of which a tenant pays for pages, by inode number: one page of the list.

    `next_after` is what to ask for the next page with; None: this is the last one. It pays for `detached_bytes` that
    are in no file, and for `inode_bytes` of names and inodes, too.
    """

    tenants: tuple[TenantRef, ...]
    files: tuple[FileHoldings, ...]
    detached_bytes: int = 0
    inode_bytes: int = 0
    next_after: int | None = None


class AuditDifference(_Answer):
    """Pages of a file: what the `books` say of them, and what the `kernel` says. `path` is "" without a name."""

    path: str
    inode: int
    first_page: int
    last_page: int
    books: str
    kernel: str


class AuditPage(_Answer):
    """What an audit found in a part of the files, by inode number, and on the first page in what is mapped of any.

    `pages` are those that the files have in the books. `repaired` files differed, and do not any more. `next_after` is
    what to ask for the next page with; None: this is the last one.
    """

    files: int
    pages: int
    repaired: int
    differences: tuple[AuditDifference, ...]
    next_after: int | None = None


class UnclaimedFile(_Answer):
    """A file with pages that no live tenant uses, or one that was spilled to disk for that.

    `last_owner` is the cgroup that made it, None when that is not known any more. `unclaimed_bytes` of a spilled file
    are on disk. `age_seconds` is since when nobody uses it, as far as we have looked.
    """

    path: str
    inode: int
    size_bytes: int
    unclaimed_bytes: int
    used_bytes: int
    last_owner: str | None
    age_seconds: float
    spilled: bool


class UnclaimedPage(_Answer):
    """One page of the list, by inode number; `next_after` as in `FilesOfTenant`."""

    files: tuple[UnclaimedFile, ...]
    next_after: int | None = None


class HandedOver(_Answer):
    """What a tenant (None: nobody) was given: files with resident pages, and the bytes of these that it owns now.

    `foreign_bytes` of the files stay whose they were: the kernel charges them to their owner.
    """

    tenant: str | None
    files: int
    handed_bytes: int
    foreign_bytes: int


class UsersOfFile(_Answer):
    tenants: tuple[TenantRef, ...]
    file: FileHoldings


NEW_IN_STATUS = ("moved_charge_bytes", "detached_bytes", "inode_bytes", "mapping_records_lost")
"""Fields of `PoolStatus`, oldest first. The daemon sends as many of them as the caller says that it knows."""


class PoolStatus(_Answer):
    """What `sharedfs status` shows of one pool.

    `refused` counts what tenants were refused for want of an allowance (EDQUOT). `flags` and `settings` are mount
    options that are in force: the kernel's and the pool's own.
    `recharged_bytes` were foreign, of a cgroup that is gone or beside such pages in a window of 2 MiB, and are the
    pool's now; `stranded_bytes` still are not, and `recharge_refusal` says why, "" when nothing keeps them.
    `moved_charge_bytes` are pages whose charge a tenant moved to itself, and that go back. `detached_bytes` and
    `inode_bytes` are as of `Holdings`. `deleted_*` and
    `brought_back_files` count what the rule for unclaimed files did, `spilled_*` is what is on disk now. `requests`
    counts served requests, `mapping_scans` finished scans, all since this daemon took over. `restarts` is how many
    daemons there were before it, `reloads` how often this keeper had the installed version take over (an earlier one
    does not tell); `survives` says whether there can be another daemon. `bound_bytes` is what the files may hold now,
    less than the size where `bounded_by` names a limit of memory; `hides_limits` says that there may be limits above
    that cannot be seen. `unseen_processes` could not be looked at, so that what they map stays as it was; `unseen` has
    the first of them, by id with their cgroups. `mapping_records_lost` says how often records of mappings were lost,
    None where the kernel gives none (an earlier daemon takes none). `oom_score_adj` is the daemon's: -1000 keeps the
    kernel from killing it when memory is short.
    """

    name: str
    mountpoint: str
    flags: str
    settings: str
    keeper_pid: int
    daemon_pid: int
    restarts: int
    reloads: int | None = None
    survives: str
    size_bytes: int
    bound_bytes: int
    bounded_by: str
    hides_limits: bool
    oom_score_adj: int
    resident_bytes: int
    foreign_bytes: int
    swapped_bytes: int
    recharged_bytes: int
    stranded_bytes: int
    moved_charge_bytes: int = 0
    detached_bytes: int = 0
    inode_bytes: int = 0
    recharge_refusal: str
    deleted_files: int
    deleted_bytes: int
    spilled_files: int
    spilled_bytes: int
    brought_back_files: int
    tenants: int
    files: int
    data_path: DataPathKind
    engine: Engine
    mmap: str
    pool_cgroup: str
    sharing_classes: int
    ledger_bytes: int
    mapping_scans: int
    mapping_records_lost: int | None = None
    unseen_processes: int = 0
    unseen: dict[int, str] = Field(default_factory=dict)
    refused: int
    requests: dict[str, int]


class Allowance(_Frozen):
    """A tenant may make pages resident until its even share is `until_bytes`; None: as many as the pool has."""

    path: str
    inode: int
    until_bytes: int | None


class AllowanceAbove(_Frozen):
    """The tenants at and below `path` may make pages resident until their even shares sum up to `until_bytes`."""

    path: str
    until_bytes: int


class AllowanceOrder(_Body):
    """Allowances for tenants of one answer of the holdings, or for what is `above` tenants.

    They end after `valid_seconds` unless renewed. A daemon of an earlier version refuses an order with `above`.

    `sequence` rises from order to order: one that comes late is refused.
    """

    sequence: int
    valid_seconds: float
    tenants: tuple[Allowance, ...] = ()
    above: tuple[AllowanceAbove, ...] = ()


TAPE_COLUMNS = ("time_us", "event", "tenant", "file", "first_page", "last_page", "value")


class TapeRows(_Answer):
    """What happened since the tape was taken last.

    `rows` are base64 of 64-bit integers in the host's order, a row of them for each event: TAPE_COLUMNS. `tenants` and
    `files` name those in them: the cgroups' paths, and paths relative to the pool's root ("" for a file that has no
    name any more).
    """

    rows: str
    tenants: dict[int, str]
    files: dict[int, str]
    full: bool


class Remount(_Body):
    """Mount options that a mounted pool is to change to: words with commas between, as `mount -o` has them."""

    options: str


class StateVersion(_Answer):
    """Of what outlives a daemon (`pool/schema.py`): what it is, and what the daemon can make of it as it hands over."""

    version: int
    leaves: tuple[int, ...]


class PoolRecord(_Answer):
    """RUN/pools/NAME/pool.json: enough to find, judge and clean up a pool, whether its keeper lives or not.

    `device` is the mount's (major, minor), by which it is found where it is mounted elsewhere.
    """

    name: str
    mountpoint: str
    keeper_pid: int
    pool_cgroup: str
    removable_cgroups: tuple[str, ...]
    device: tuple[int, int] | None = None
