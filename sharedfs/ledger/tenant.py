"""Who uses the pool: a tenant is one cgroup for as long as it lives, under a small number.

The inode number of its directory tells a cgroup from others, while it lives; its path is its name, which can change and
come back as another's. The books need a number that outlives it, so each cgroup is interned to a `TenantId` that is
never used again. The table is kept in a log, so that this holds for whoever continues the books, too.

Of a tenant that has exited the table knows the *heir*: the live cgroup above it that has what nobody else pays for.
"""

from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import NewType

from sharedfs.common.errors import BrokenInvariant
from sharedfs.ledger.storage import Log, MemoryLog, Record

TenantId = NewType("TenantId", int)

NOBODY = TenantId(0)
"""The owner of pages whose owner is gone, and the tenant of operations that nobody can be asked to pay for."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One cgroup: its path below the hierarchy's root as it is known, and the inode number of its directory."""

    id: TenantId
    path: str
    inode: int


_TABLE, _TENANT, _GONE = "tenants", "tenant", "gone"


class TenantTable:
    """The live tenants, by identity and by id. Every method is O(1) unless it says otherwise."""

    def __init__(self, log: Log | None = None) -> None:
        self._log = MemoryLog() if log is None else log
        self._by_id: dict[TenantId, Tenant] = {}
        self._by_inode: dict[int, Tenant] = {}
        self._heirs: dict[TenantId, TenantId] = {}  # of those that are gone; an heir lives
        self._left_to: dict[TenantId, set[TenantId]] = {}  # the same by heir
        self._last_id = NOBODY

    def intern(self, path: str, inode: int) -> TenantId:
        """The id of this cgroup, a new one when it was not known (ids count from 1). Its path is this one now."""
        tenant = self._by_inode.get(inode)
        if tenant is None or tenant.path != path:
            tenant = Tenant(TenantId(self._last_id + 1) if tenant is None else tenant.id, path, inode)
            self._log.append((_TENANT, tenant.id, path, inode))
            self._add(tenant)
        return tenant.id

    def _add(self, tenant: Tenant) -> None:
        self._last_id = TenantId(max(self._last_id, tenant.id))
        self._by_id[tenant.id] = self._by_inode[tenant.inode] = tenant

    def find(self, inode: int) -> TenantId | None:
        """The id of this cgroup, None when it is not a live tenant."""
        tenant = self._by_inode.get(inode)
        return None if tenant is None else tenant.id

    def get(self, tenant_id: TenantId) -> Tenant | None:
        """The live tenant with this id, None when there is none (any more)."""
        return self._by_id.get(tenant_id)

    def if_live(self, tenant_id: TenantId) -> TenantId:
        """NOBODY for a tenant that exited since its thread was looked up: no exit would take it out of the books."""
        return tenant_id if tenant_id in self._by_id else NOBODY

    def __contains__(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._by_id

    def live(self) -> list[Tenant]:
        """The live tenants, oldest first. O(tenants)."""
        return list(self._by_id.values())

    def payer_for(self, tenant_id: TenantId) -> TenantId:
        """Who pays for what this tenant made: itself while it lives, then its heir; NOBODY where there is none."""
        return tenant_id if tenant_id in self._by_id else self._heirs.get(tenant_id, NOBODY)

    def remove(self, tenant_id: TenantId, heir: TenantId = NOBODY) -> Tenant:
        """Forget a tenant that has exited, and return what it was. Its id is never given again.

        `heir`, another live tenant, has what was its own and what it was the heir to. Raises KeyError when no live
        tenant has this id. O(heirs).
        """
        tenant = self._by_id[tenant_id]
        self._log.append((_GONE, tenant_id) if heir == NOBODY else (_GONE, tenant_id, heir))
        return self._remove(tenant, heir)

    def _remove(self, tenant: Tenant, heir: TenantId = NOBODY) -> Tenant:
        del self._by_id[tenant.id]
        del self._by_inode[tenant.inode]
        left = {tenant.id, *self._left_to.pop(tenant.id, ())}
        if heir == NOBODY:
            for gone in left:
                self._heirs.pop(gone, None)
        else:
            self._inherits(heir, left)
        return tenant

    def _inherits(self, heir: TenantId, left: Collection[TenantId]) -> None:
        self._heirs.update(dict.fromkeys(left, heir))
        self._left_to.setdefault(heir, set()).update(left)

    def keep_heirs_of(self, made: Container[int]) -> None:
        """Forget who inherits from those that made nothing that is there. O(heirs)."""
        kept = [(gone, heir) for gone, heir in self._heirs.items() if gone in made]
        self._heirs.clear()
        self._left_to.clear()
        for gone, heir in kept:
            self._inherits(heir, (gone,))

    def dump(self, *, with_heirs: bool = True) -> Record:
        """The table as one record; without heirs as the versions before read it. O(tenants + heirs)."""
        live = [(tenant.id, tenant.path, tenant.inode) for tenant in self.live()]
        heirs = [list(self._heirs.items())] if with_heirs and self._heirs else []
        return (_TABLE, self._last_id, live, *heirs)

    def replay(self, record: Record) -> bool:
        """Do again what a record of the log tells of; False when it is not one of the table's."""
        match record:
            case [str(tag), last_id, tenants, *heirs] if tag == _TABLE:
                self._last_id = TenantId(last_id)
                for tenant_id, path, inode in tenants:
                    self._add(Tenant(TenantId(tenant_id), path, inode))
                for part in heirs:
                    for gone, heir in part:
                        self._inherits(TenantId(heir), (TenantId(gone),))
            case [str(tag), tenant_id, path, inode] if tag == _TENANT:
                self._add(Tenant(TenantId(tenant_id), path, inode))
            case [str(tag), tenant_id, *heir] if tag == _GONE:
                self._remove(self._by_id[tenant_id], *heir)
            case _:
                return False
        return True

    def __len__(self) -> int:
        return len(self._by_id)

    def check(self) -> None:
        """Raise BrokenInvariant unless ids and identities name the same tenants. O(tenants)."""
        by_inode = {tenant.inode: tenant for tenant in self._by_id.values()}
        if by_inode != self._by_inode:
            raise BrokenInvariant(f"I9: tenants by id {self._by_id} are not those by inode {self._by_inode}")
        if any(not NOBODY < tenant_id <= self._last_id for tenant_id in self._by_id):
            raise BrokenInvariant(f"I9: a tenant id outside 1..{self._last_id} in {self._by_id}")
        by_heir = {(gone, heir) for heir, left in self._left_to.items() for gone in left}
        if by_heir != set(self._heirs.items()) or any(
            gone in self._by_id or heir not in self._by_id for gone, heir in self._heirs.items()
        ):
            raise BrokenInvariant(f"I9: an heir that is gone, or of one that lives: {self._heirs}")
