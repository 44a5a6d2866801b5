"""What tenants came to use by no act of their own, counted up: the controller does not take it for their own doing.

An operator hands files over; others add pages to a file that a tenant holds open to read unseen; and the daemon takes a
tenant for the user of pages that it may have used while the kernel moved them.
"""

from collections import Counter
from dataclasses import dataclass, field

from sharedfs.ledger.tenant import TenantId


@dataclass(slots=True)
class Unasked:
    """Bytes by tenant since the daemon started. Call with the books' lock held."""

    handed: Counter[TenantId] = field(default_factory=Counter)
    """Of pages that the operator made a tenant the owner of."""
    added: Counter[TenantId] = field(default_factory=Counter)
    """Of others' pages that a tenant uses, all else."""

    def copy(self) -> "Unasked":
        return Unasked(self.handed.copy(), self.added.copy())

    def forget(self, tenant: TenantId) -> None:
        """It has exited."""
        self.handed.pop(tenant, None)
        self.added.pop(tenant, None)
