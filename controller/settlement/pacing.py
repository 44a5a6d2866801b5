"""How fast limits move: so much down a second, so many writes a second, and no trembling. Pure.

Of each cgroup two buckets are kept, which fill with time and hold what a second brings (or a burst of writes):

- *descent*: bytes that lowering a limit may make a tenant give up. Reclaim runs in the tenant's own allocations as well
  as in our write, so this bounds how much of its time goes into it.
- *writes*: orders. A limit that should change more often is late, and right at the next order.

A share that trembles does not make its limit tremble: a lowering is carried out as soon as the buckets allow, a small
raising (less than `step_bytes`) only when it has been due for `hold_seconds` without a break. So the limit stays at
the lower edge of what trembles.
"""

from collections.abc import Set
from dataclasses import dataclass

from controller.limits.types import Limits, Order
from sharedfs.linux.cgroups import CgroupRef


@dataclass(frozen=True, slots=True)
class Pace:
    """docs/settlement.md argues the values. 0 bytes a second is no bound."""

    descent_bytes_per_second: int = 256 << 20
    writes_per_second: float = 2.0
    write_burst: int = 8
    step_bytes: int = 256 << 10
    hold_seconds: float = 2.0


DEFAULT_PACE = Pace()


@dataclass(slots=True)
class _Buckets:
    filled_seconds: float
    descent_bytes: float
    writes: float
    small_since_seconds: float | None = None


class Pacing:
    """Decides which orders go out now. `now_seconds` never goes back. Every method is O(1)."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.put_off = 0
        """Orders that had to wait, since the start."""
        self._buckets: dict[CgroupRef, _Buckets] = {}

    def descent_bytes(self, now_seconds: float, cgroup: CgroupRef) -> int | None:
        """What the cgroup may be made to give up now, None for all of it."""
        if not self.pace.descent_bytes_per_second:
            return None
        return int(self._fill(now_seconds, cgroup).descent_bytes)

    def admit(self, now_seconds: float, order: Order | None, cgroup: CgroupRef, usage_bytes: int) -> bool:
        """Whether `order` goes out now: it is then counted. None tells that `cgroup` is where it should be."""
        buckets = self._fill(now_seconds, cgroup)
        if order is None:
            buckets.small_since_seconds = None
            return False
        if self._is_small_raise(order):
            if buckets.small_since_seconds is None:
                buckets.small_since_seconds = now_seconds
            if now_seconds - buckets.small_since_seconds < self.pace.hold_seconds:
                self.put_off += 1
                return False
        else:
            buckets.small_since_seconds = None
        if buckets.writes < 1:
            self.put_off += 1
            return False
        buckets.small_since_seconds = None
        buckets.writes -= 1
        buckets.descent_bytes = max(0, buckets.descent_bytes - given_up_bytes(order, usage_bytes))
        return True

    def keep(self, cgroups: Set[CgroupRef]) -> None:
        """Forget all others."""
        for cgroup in self._buckets.keys() - cgroups:
            del self._buckets[cgroup]

    def _fill(self, now_seconds: float, cgroup: CgroupRef) -> _Buckets:
        pace = self.pace
        buckets = self._buckets.get(cgroup)
        if buckets is None:
            buckets = _Buckets(now_seconds, pace.descent_bytes_per_second, pace.write_burst)
            self._buckets[cgroup] = buckets
        passed = now_seconds - buckets.filled_seconds
        rate = pace.descent_bytes_per_second
        buckets.descent_bytes = min(rate, buckets.descent_bytes + passed * rate)
        buckets.writes = min(pace.write_burst, buckets.writes + passed * pace.writes_per_second)
        buckets.filled_seconds = now_seconds
        return buckets

    def _is_small_raise(self, order: Order) -> bool:
        def rise(now: int | None, intended: int | None) -> int | None:
            """None where it is no small one."""
            if now is None or intended is None:
                return 0 if now == intended else None
            return intended - now

        rises = (
            rise(order.now.max_bytes, order.intended.max_bytes),
            rise(order.now.high_bytes, order.intended.high_bytes),
            rise(order.now.swap_bytes, order.intended.swap_bytes),
        )
        return all(risen is not None and 0 <= risen < self.pace.step_bytes for risen in rises)


def given_up_bytes(order: Order, usage_bytes: int) -> int:
    """What `order` takes away from a tenant that uses `usage_bytes`, at most."""
    return max(0, _lowest(order.now, usage_bytes) - _lowest(order.intended, usage_bytes))


def _lowest(limits: Limits, usage_bytes: int) -> int:
    return min(
        usage_bytes, *(limit for limit in (limits.max_bytes, limits.high_bytes, usage_bytes) if limit is not None)
    )
