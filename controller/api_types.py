"""What the controller's API says, as plain typed data. Sizes are bytes; a tenant is its cgroup's path on the host."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TenantBill(_Frozen):
    """`limit_bytes` is what the kernel enforces now: budget - share + debt. None is no limit, or no budget."""

    tenant: str
    state: Literal["live", "empty"]
    share_bytes: int
    used_bytes: int
    budget_bytes: int | None
    limit_bytes: int | None
    kernel_usage_bytes: int
    debt_bytes: int


class Bills(_Frozen):
    """The shares and `unclaimed_bytes` sum to `pool_resident_bytes` (I1)."""

    pool_resident_bytes: int
    unclaimed_bytes: int
    foreign_bytes: int
    tenants: tuple[TenantBill, ...]


class ExplainedFile(_Frozen):
    """`used_bytes` by how we know of the use: an open handle for fast reading, page tables, or reads and writes."""

    pool: str
    path: str
    used_bytes: int
    opened_bytes: int
    mapped_bytes: int
    touched_bytes: int
    share_bytes: int


class ExplainedClass(_Frozen):
    """`bytes` are those of the whole class, `share_bytes` the tenant's part of them."""

    pool: str
    users: tuple[str, ...]
    owner: str | None
    mapped: tuple[str, ...]
    foreign: bool
    bytes: int
    share_bytes: int


class Explanation(_Frozen):
    """A tenant's share, twice: the shares of `files` and those of `classes` both sum to `share_bytes`."""

    tenant: str
    share_bytes: int
    used_bytes: int
    files: tuple[ExplainedFile, ...]
    classes: tuple[ExplainedClass, ...]


class FileUser(_Frozen):
    tenant: str
    used_bytes: int
    share_bytes: int


class FileUsers(_Frozen):
    """The shares and `unclaimed_bytes` sum to `resident_bytes`."""

    pool: str
    path: str
    resident_bytes: int
    unclaimed_bytes: int
    tenants: tuple[FileUser, ...]


class SurvivorBill(_Frozen):
    tenant: str
    share_before_bytes: int
    share_after_bytes: int
    limit_before_bytes: int | None
    limit_after_bytes: int | None


class ExitForecast(_Frozen):
    """`freed_bytes` would become unclaimed: nobody but `tenant` uses them."""

    tenant: str
    freed_bytes: int
    tenants: tuple[SurvivorBill, ...]


class BudgetOrder(_Frozen):
    budget_bytes: Annotated[int, Field(ge=4096, lt=1 << 62)]


class BudgetState(_Frozen):
    """`known` says whether a pool has the tenant: its limit is written only while one has."""

    tenant: str
    budget_bytes: int | None
    known: bool


class Health(_Frozen):
    """`settlements` counts them since the start; `pools` are those on the bill."""

    version: str
    settlements: int
    pools: tuple[str, ...]
