"""Who made a file: the cgroup that first had pages of it, for people who look for the origin of what nobody uses.

Pure. Remembered also when the cgroup is gone, as long as the file is there. Call with the books' lock held.
"""

from sharedfs.ledger.tenant import NOBODY, TenantId, TenantTable


class Makers:
    def __init__(self, tenants: TenantTable) -> None:
        self._tenants = tenants
        self._makers: dict[int, TenantId] = {}
        self._gone: dict[TenantId, str] = {}

    def used(self, inode: int, tenant: TenantId) -> None:
        """`tenant` has pages of a file. The first one counts."""
        self._makers.setdefault(inode, tenant)

    def handed(self, inode: int, tenant: TenantId) -> None:
        """A file was handed over: `tenant` counts as its maker from now on."""
        self._makers[inode] = tenant

    def gone(self, tenant: TenantId, path: str) -> None:
        self._gone[tenant] = path

    def drop(self, inode: int) -> None:
        self._makers.pop(inode, None)

    def path_of(self, inode: int) -> str | None:
        """The path of the cgroup; None when we do not know."""
        maker = self._makers.get(inode, NOBODY)
        live = self._tenants.get(maker)
        return self._gone.get(maker) if live is None else live.path

    def tidy(self) -> None:
        """Of the tenants that are gone, remember those only that made a file that is there. O(files + tenants)."""
        makers = set(self._makers.values())
        self._gone = {tenant: path for tenant, path in self._gone.items() if tenant in makers}
