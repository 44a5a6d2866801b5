"""From bills to byte-seconds: who paid for how much, for how long. Pure; the caller says what time it is.

Time is a clock that nobody sets (CLOCK_MONOTONIC), in whole milliseconds. A bill holds from its settlement to the next
one; when that takes long, because the machine slept or we did, only LONGEST_MS of it count: nobody knows of the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.billing.bill import Bill

LONGEST_MS = 60_000

UNCLAIMED = ""
"""In place of a tenant: bytes that nobody paid for."""

Account = tuple[str, str]
"""Tenant (its cgroup's path) and pool."""


@dataclass(frozen=True, slots=True)
class Usage:
    """`covered_ms`: how long there was a bill. `share` was paid for, `used` was used, both in byte-milliseconds."""

    covered_ms: int = 0
    share: int = 0
    used: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.covered_ms + other.covered_ms, self.share + other.share, self.used + other.used)


class Meter:
    """Adds up. `bills` are by pool."""

    def __init__(self) -> None:
        self._last: tuple[int, Mapping[str, Bill]] | None = None
        self._usage: dict[Account, Usage] = {}

    def read(self, now_ms: int, bills: Mapping[str, Bill]) -> None:
        """The bills from `now_ms` on. O(lines)."""
        if self._last is not None:
            then_ms, before = self._last
            self._add(min(max(now_ms - then_ms, 0), LONGEST_MS), before)
        self._last = now_ms, bills

    def _add(self, milliseconds: int, bills: Mapping[str, Bill]) -> None:
        if not milliseconds:
            return
        for pool, bill in bills.items():
            for tenant, line in bill.tenants.items():
                used = Usage(milliseconds, line.share_bytes * milliseconds, line.used_bytes * milliseconds)
                self._count((tenant.path, pool), used)
            self._count((UNCLAIMED, pool), Usage(milliseconds, bill.unclaimed_bytes * milliseconds, 0))

    def _count(self, account: Account, usage: Usage) -> None:
        self._usage[account] = self._usage.get(account, Usage()) + usage

    def take(self) -> dict[Account, Usage]:
        """What was added up, which starts anew."""
        taken, self._usage = self._usage, {}
        return taken

    def give_back(self, usage: Mapping[Account, Usage]) -> None:
        """What was taken and could not be kept."""
        for account, amount in usage.items():
            self._count(account, amount)
