"""Pages that are in no file any more and still in memory: how much there is, and who pays for it.

Nobody can tell whose hold keeps a page. Those pay who were the last to use the pages that went while there came to be
more such pages: in proportion, and for as long as there are.
"""

from collections import Counter
from collections.abc import Mapping
from threading import Lock

from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId


class Detached:
    """`lock` is the books'. Call all but `put` with it held. `freed` is what the ledger tells of pages that go."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self.bytes = 0
        self.by_payer: dict[TenantId, int] = {}
        """In bytes, which add up; NOBODY's are unclaimed."""
        self.changes = 0
        """Rises with each change."""
        self._freed: Counter[TenantId] = Counter()
        self._freed_before: Counter[TenantId] = Counter()

    def freed(self, held: SharingClass, pages: int) -> None:
        """Pages of a class are gone from their file."""
        for tenant in held.recent | held.mapped or held.users or held.payers or (NOBODY,):
            self._freed[tenant] += pages

    def put(self, total_bytes: int) -> None:
        """So much there is now, as a look has found it."""
        with self._lock:
            self._put(total_bytes)

    def _put(self, total_bytes: int) -> None:
        freed = self._freed + self._freed_before
        self._freed_before, self._freed = self._freed, Counter()
        if total_bytes == self.bytes:
            return
        self.changes += 1
        if total_bytes > self.bytes:
            weights: Mapping[TenantId, int] = freed or {NOBODY: 1}
            for tenant, part in parted(total_bytes - self.bytes, weights).items():
                self.by_payer[tenant] = self.by_payer.get(tenant, 0) + part
        else:
            self.by_payer = parted(total_bytes, self.by_payer)
        self.by_payer = {tenant: part for tenant, part in self.by_payer.items() if part}
        self.bytes = total_bytes

    def forget(self, tenant: TenantId, heir: TenantId) -> None:
        """It has exited: what it paid for is its heir's, or nobody's."""
        self._freed.pop(tenant, None)
        self._freed_before.pop(tenant, None)
        part = self.by_payer.pop(tenant, 0)
        if part:
            self.by_payer[heir] = self.by_payer.get(heir, 0) + part
            self.changes += 1


def parted(total: int, weights: Mapping[TenantId, int]) -> dict[TenantId, int]:
    """A whole number in proportion to `weights`, which are positive, to the unit.

    >>> parted(10, {TenantId(1): 1, TenantId(2): 2})
    {1: 4, 2: 6}
    """
    whole = sum(weights.values())
    parts = {tenant: total * weight // whole for tenant, weight in weights.items()}
    for tenant in sorted(weights)[: total - sum(parts.values())]:
        parts[tenant] += 1
    return parts
