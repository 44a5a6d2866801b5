"""Who the tenants are: cgroups under the host's rules, from the first request of a thread in one until it is gone."""

import logging
import sys
from collections.abc import Iterable
from posixpath import dirname

from sharedfs.accounting.core import Core
from sharedfs.accounting.quota import first_allowances
from sharedfs.ledger.tenant import NOBODY, Tenant, TenantId
from sharedfs.ledger.tenant_rules import TenantRules
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy, chain
from sharedfs.linux.memory_limits import MemoryLimits, is_limited

log = logging.getLogger("sharedfs")


class Tenants:
    def __init__(self, core: Core, hierarchy: MemoryHierarchy, rules: TenantRules) -> None:
        self.hierarchy = hierarchy
        self.exits = 0
        """Rises with each exit: a name of a cgroup then has to be looked up anew."""
        self._core = core
        self._rules = rules
        self._blind = False

    def tenant_in(self, proc_cgroup: bytes) -> TenantId:
        """The tenant of who has this /proc/PID/cgroup; NOBODY when there is no such cgroup (any more)."""
        path = self.hierarchy.path_in(proc_cgroup)
        return NOBODY if path is None else self.tenant_at(path)

    def tenant_at(self, path: str) -> TenantId:
        """The tenant of a process in the cgroup at `path`; NOBODY when there is no such cgroup."""
        cgroup = self.hierarchy.find(self._rules.tenant_path(path))
        if cgroup is None:
            return NOBODY
        core = self._core
        tenant = self.intern(cgroup.path, cgroup.inode)
        with core.lock:
            is_new = core.allowances.lack(tenant)
        if is_new:  # a tenant has an allowance from its first request on
            limits = MemoryLimits(self.hierarchy, cgroup.path)
            try:
                rooms = first_allowances(limits.read(sys.maxsize))
            finally:
                limits.close()
            with core.lock:
                core.allowances.begin(tenant, rooms)
        return tenant

    def intern(self, path: str, inode: int) -> TenantId:
        """`TenantTable.intern`: the tenant that is this cgroup is known from now on."""
        with self._core.lock:
            tenant = self._core.tenants.intern(path, inode)
            self._core.allowances.above.join(tenant, path)
            self._core.tidy_log()
        return tenant

    def payer_for(self, number: int) -> TenantId:
        """`TenantTable.payer_for`: who pays for what this tenant made, which may be gone."""
        return self._core.tenants.payer_for(TenantId(number))

    def cgroup_of(self, tenant: TenantId) -> CgroupRef | None:
        """The cgroup of a tenant that lives, as far as is known."""
        with self._core.lock:
            known = self._core.tenants.get(tenant)
        return None if known is None else CgroupRef(known.path, known.inode)

    def charged(self, inode: int) -> TenantId:
        """The tenant of the cgroup with this inode number, which the kernel says that it charges for a page.

        It names the nearest cgroup that lives, also for one that is gone. So one that nobody has heard of, and that has
        no processes or is the root, made no page: NOBODY.
        """
        with self._core.lock:
            known = self._core.tenants.find(inode)
        if known is not None:
            return known
        cgroup = self.hierarchy.at(inode)
        if cgroup is None:
            return NOBODY
        above = self.hierarchy.find(self._rules.tenant_path(cgroup.path))
        with self._core.lock:
            known = None if above is None else self._core.tenants.find(above.inode)
        if known is not None:
            return known
        return (
            NOBODY if cgroup.path == "/" or not self.hierarchy.processes(cgroup.path) else self.tenant_at(cgroup.path)
        )

    def live(self) -> list[Tenant]:
        """The live tenants, oldest first. O(tenants)."""
        with self._core.lock:
            return self._core.tenants.live()

    def __len__(self) -> int:
        return len(self._core.tenants)

    def dead(self) -> list[TenantId]:
        """The tenants whose cgroup is gone; nobody without a hierarchy. Those that were renamed get their new names."""
        dead = []
        for tenant in self.live():
            cgroup = self.hierarchy.now(CgroupRef(tenant.path, tenant.inode))
            if cgroup is None:
                dead.append(tenant.id)
            elif cgroup.path != tenant.path:
                self.intern(cgroup.path, cgroup.inode)
        if dead and not self.hierarchy.stands():
            if not self._blind:
                log.warning("%s: no cgroup hierarchy there any more: nobody exits until it is", self.hierarchy.mount)
            self._blind = True
            return []
        self._blind = False
        return dead

    def exit(self, tenants: Iterable[TenantId]) -> None:
        """These cgroups are gone. `Tidying.tidy` is to follow. The lock is let go between two tenants."""
        core = self._core
        for tenant in tenants:
            heir = self._heir(tenant)
            with core.lock:
                core.readers.forget(tenant)
                core.ledger.exit(tenant, heir)
                core.allowances.forget(tenant)
                core.unasked.forget(tenant)
                core.detached.forget(tenant, heir)
                if core.tape is not None:
                    core.tape.exit(tenant)
                # last: a tenant that is known here is asked after again
                core.makers.gone(tenant, core.tenants.remove(tenant, heir).path)
                self.exits += 1
                core.tidy_log()

    def _heir(self, tenant: TenantId) -> TenantId:
        """Whose is what a tenant leaves that is gone: the nearest cgroup above it that lives and is bounded.

        Without that, who may make cgroups below its own would hold memory at nobody's account. NOBODY where none is.
        """
        gone = self.cgroup_of(tenant)
        for path in chain(dirname(gone.path)) if gone is not None else ():
            with self._core.lock:
                has_mark = path in self._core.allowances.above.left  # a budget of the operator's, or a cap
            if has_mark or is_limited(self.hierarchy, path):
                heir = self.hierarchy.find(path)
                if heir is not None:
                    return self.intern(heir.path, heir.inode)
        return NOBODY
