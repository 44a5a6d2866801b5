"""What the controller's API says, as plain typed data. Sizes are bytes; a tenant is its cgroup's path on the host.

Dataclasses, because a command of one question does not wait for pydantic: `client.read` makes them of JSON.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantBill:
    """`limit_bytes` is what the kernel enforces now: budget - share + debt - borne. None is no limit, or no budget.

    Budget and limit are the lowest of the tenant's own and those of the cgroups above it; `bound_by` is the cgroup
    whose limit that is. `over_bytes` is what the tenant uses and pays for beyond its own budget. A debt has an age;
    `borne_bytes` are others' debts that this tenant bears meanwhile. `report_only`: its limit is left alone. `name` is
    what the container is called by its runtime, where that is known. `inherited_bytes` of what is due were put on it by
    others' acts, `borne_bytes` included; the limit yields so much to the tenant's own demand.
    `swapped_bytes` are the part of the share that is in swap: it comes off the limit of swap, where the manager has
    set one (v2), and off no memory limit. `detached_bytes` are the part that is in no file any more,
    `inode_bytes` what names and inodes take that it made, beyond those that come with the pool's size. The `swap_`
    fields are as those for memory, the tenant's own; None is no limit.
    """

    tenant: str
    name: str | None = None
    state: Literal["live", "empty"]
    share_bytes: int
    swapped_bytes: int
    detached_bytes: int = 0
    inode_bytes: int = 0
    used_bytes: int
    budget_bytes: int | None
    limit_bytes: int | None
    bound_by: str | None
    report_only: bool
    kernel_usage_bytes: int
    over_bytes: int
    debt_bytes: int
    debt_age_seconds: float | None
    borne_bytes: int
    inherited_bytes: int
    swap_budget_bytes: int | None
    swap_limit_bytes: int | None
    swap_debt_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBill:
    """A cgroup above tenants, with a limit of its own: `due_bytes` is what all tenants at or below it owe."""

    cgroup: str
    due_bytes: int
    budget_bytes: int | None
    limit_bytes: int | None
    kernel_usage_bytes: int
    debt_bytes: int
    debt_age_seconds: float | None
    inherited_bytes: int
    swap_due_bytes: int
    swap_budget_bytes: int | None
    swap_limit_bytes: int | None
    swap_debt_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAnswers:
    """How it stands with one pool. `age_seconds` is of its books; None: it has not answered yet, so no bill has it.

    `errors` counts questions and orders of the controller without a proper answer, `last_error` is the last one's.
    """

    pool: str
    age_seconds: float | None
    errors: int
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bills:
    """The shares and `unclaimed_bytes` sum to `pool_resident_bytes`, and what is no page of a file (I1).

    That is `detached_bytes`, which are in no file any more, and `inode_bytes`, which names and inodes take.
    Of the debts of all tenants, `borne_bytes` are taken off limits of others; the rest stays with the pool.
    """

    pools: tuple[PoolAnswers, ...]

    pool_resident_bytes: int
    unclaimed_bytes: int
    foreign_bytes: int
    debt_bytes: int
    borne_bytes: int
    swapped_bytes: int
    detached_bytes: int = 0
    inode_bytes: int = 0
    tenants: tuple[TenantBill, ...]
    groups: tuple[GroupBill, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedFile:
    """`used_bytes` are those that the tenant allocated or uses, by how the daemon knows of it.

    That is an open handle for fast reading, page tables, or (`touched_bytes`) allocations, reads and writes. By
    `by_range` the tenant had it mapped for so short that nobody saw its page tables: all in that range counts as read.
    """

    pool: str
    path: str
    used_bytes: int
    opened_bytes: int
    mapped_bytes: int
    touched_bytes: int
    share_bytes: int
    by_range: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedClass:
    """`bytes` are those of the whole class, `share_bytes` the tenant's part of them."""

    pool: str
    payers: tuple[str, ...]
    owner: str | None
    mapped: tuple[str, ...]
    foreign: bool
    swapped: bool
    detached: bool = False
    inodes: bool = False
    bytes: int
    share_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A tenant's share, twice: those of all its files and those of `classes` both sum to `share_bytes`.

    `files` are the ones with the largest shares; the `others` have `others_share_bytes` together.
    """

    tenant: str
    share_bytes: int
    used_bytes: int
    files: tuple[ExplainedFile, ...]
    others: int
    others_share_bytes: int
    classes: tuple[ExplainedClass, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUser:
    tenant: str
    used_bytes: int
    share_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUsers:
    """The shares and `unclaimed_bytes` sum to `resident_bytes`."""

    pool: str
    path: str
    resident_bytes: int
    unclaimed_bytes: int
    tenants: tuple[FileUser, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What `tenant` (None: nobody) owns from now on: `handed_bytes` in so many files of `pool`.

    `foreign_bytes` of them stay whose they were. `share_bytes` and `debt_bytes` are the tenant's after that.
    """

    pool: str
    path: str
    tenant: str | None
    files: int
    handed_bytes: int
    foreign_bytes: int
    share_bytes: int
    debt_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorBill:
    tenant: str
    share_before_bytes: int
    share_after_bytes: int
    limit_before_bytes: int | None
    limit_after_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitForecast:
    """`freed_bytes` would become unclaimed: nobody but `tenant` uses them."""

    tenant: str
    freed_bytes: int
    tenants: tuple[SurvivorBill, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """`known` says whether a pool has the tenant: its limit is written only while one has."""

    tenant: str
    budget_bytes: int | None
    report_only: bool
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CapState:
    """`cap` is bytes, or percents of the pool's size with "%"; `pool` None: every pool that has none of its own."""

    tenant: str
    pool: str | None
    cap: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapStates:
    caps: tuple[CapState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWrite:
    """`file` is absolute. `would`: in a dry run; `ordered`: done, or under way; `waits`: put off for now."""

    cgroup: str
    file: str
    now: str
    text: str
    state: Literal["would", "ordered", "waits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePlan:
    """The writes of the last settlement."""

    dry_run: bool
    writes: tuple[PlannedWrite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """What a tenant paid for and used of a pool, in byte-seconds; `tenant` is None for what nobody paid for.

    `first` is the stamp of the oldest bucket counted, `covered_seconds` for how long its bill was known.
    """

    tenant: str | None
    pool: str
    first: int
    covered_seconds: float
    share_byte_seconds: int
    used_byte_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageHistory:
    """Totals, the largest first. `since_seconds` is None when all that is kept was asked for."""

    since_seconds: int | None
    lines: tuple[HistoryEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShare:
    """What a tenant pays under one policy, and how much more (or less) that is than under `proportional`.

    `for_others_bytes` are paid for others, `by_others_bytes` are paid by them; one of the two is 0.
    """

    share_bytes: int
    for_others_bytes: int
    by_others_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTotal:
    """`nobody_bytes` are on no tenant's bill. A policy that does not conserve bills more than what is resident."""

    billed_bytes: int
    nobody_bytes: int
    conserves: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicies:
    tenant: str
    shares: dict[str, PolicyShare]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The same books under every policy that they are enough for, by the policies' names."""

    active: str
    pool_resident_bytes: int
    totals: dict[str, PolicyTotal]
    tenants: tuple[TenantPolicies, ...]
    need_history: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    active: str
    payer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`settlements` counts them since the start; `pools` are those that live.

    `limit_writes` counts writes to limit files since the start, `orders_put_off` changes that had to wait,
    `limits_yielded` limits that the guard raised.
    """

    version: str
    settlements: int
    pools: tuple[PoolAnswers, ...]
    dry_run: bool
    limit_writes: int
    orders_put_off: int
    limits_yielded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnclaimedLine:
    """A file with pages that no live tenant uses; `spilled`: they are on disk. See the feed's type."""

    pool: str
    path: str
    size_bytes: int
    unclaimed_bytes: int
    used_bytes: int
    last_owner: str | None
    age_seconds: float
    spilled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclaimed:
    """`unclaimed_bytes` of all files in memory; `spilled_bytes` are no memory."""

    unclaimed_bytes: int
    spilled_bytes: int
    files: tuple[UnclaimedLine, ...]
