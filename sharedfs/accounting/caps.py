"""How much of a pool one tenant may have, by its options: a cap for each, and a remainder for those who have little."""

from dataclasses import dataclass

from sharedfs.common.units import UNLIMITED_BYTES


@dataclass(frozen=True, slots=True)
class Caps:
    """Of a pool that may hold `pool_bytes`. Shares are even shares, as with allowances.

    No tenant's share may grow beyond `cap_bytes`. The last `remainder_bytes` that are free are for tenants whose share
    stays below that. `unclaimed_yields`: what nobody pays for gives way to those who need space, and counts as free.
    """

    pool_bytes: int = UNLIMITED_BYTES
    cap_bytes: int | None = None
    remainder_bytes: int = 0
    unclaimed_yields: bool = False

    @property
    def bounds_tenants(self) -> bool:
        return self.cap_bytes is not None or self.remainder_bytes > 0

    @property
    def free_for_all_bytes(self) -> int:
        """So much of the pool may be used before the remainder is touched."""
        return max(0, self.pool_bytes - self.remainder_bytes)
