"""What follows from sharing classes and the bytes that each holds: what a tenant uses, and its even share."""

from collections.abc import Iterable

from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId


def used_bytes(holdings: Iterable[tuple[SharingClass, int]], tenant: TenantId) -> int:
    """How much of these `tenant` uses. O(classes)."""
    return sum(held_bytes for held, held_bytes in holdings if tenant in held.payers)


def even_shares(holdings: Iterable[tuple[SharingClass, int]]) -> dict[TenantId, int]:
    """Each class divided by its payers, rounded down: what each tenant pays if all pay alike. O(classes x payers)."""
    shares: dict[TenantId, int] = {}
    for held, held_bytes in holdings:
        payers = held.payers
        for payer in payers:
            shares[payer] = shares.get(payer, 0) + held_bytes // len(payers)
    return shares
