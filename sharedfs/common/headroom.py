"""The room that is always left: the memory a tenant may take at any time beyond its known need. Pure.

A limit that leaves no room ends a container at its next heartbeat: a liveness probe starts a process, a heap grows by a
few MiB. So settlement lowers no limit below need + room, and admission lets no share grow into it.
"""

from dataclasses import dataclass

MOST_PART = 4
"""At most a quarter of the budget: a small budget must stay usable for shares."""


@dataclass(frozen=True, slots=True)
class Room:
    """The larger of `least_bytes` and `percent` of the budget, and never more than a quarter of the budget."""

    least_bytes: int = 16 << 20
    percent: int = 5

    def of(self, budget_bytes: int) -> int:
        """The room in bytes for a tenant with this budget."""
        return min(max(self.least_bytes, budget_bytes * self.percent // 100), budget_bytes // MOST_PART)


DEFAULT_ROOM = Room()
