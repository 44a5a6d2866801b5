"""What follows from sharing classes and the bytes that each holds: what a tenant uses, its even share, and parts."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId

Payer = TypeVar("Payer", bound=int)


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


def parted(total: int, weights: Mapping[Payer, int]) -> dict[Payer, int]:
    """A whole number in proportion to `weights`, which are positive, to the unit.

    >>> parted(10, {TenantId(1): 1, TenantId(2): 2})
    {1: 4, 2: 6}
    """
    whole = sum(weights.values())
    parts = {payer: total * weight // whole for payer, weight in weights.items()}
    for payer in sorted(weights)[: total - sum(parts.values())]:
        parts[payer] += 1
    return parts
