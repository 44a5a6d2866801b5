"""What a cgroup has needed of late: a limit written at a lull must not kill at the next peak (I5). Pure.

Usage is looked at twice a second, and what swings faster is seen at some of its points only. So beside the highest
reading of the last ten seconds, half of the swing between highest and lowest is left; and an eighth of the highest as
long as a cgroup has been looked at for less than two seconds, when nothing is known of its swing.
"""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field

from sharedfs.kernel.cgroups import CgroupRef

WINDOW_SECONDS = 10.0
KNOWN_AFTER_SECONDS = 2.0
_UNKNOWN_SHARE = 8


@dataclass(slots=True)
class _Readings:
    """`highest` falls and `lowest` rises from left to right: what can still become the extreme of the window."""

    first_seconds: float
    highest: deque[tuple[float, int]] = field(default_factory=deque)
    lowest: deque[tuple[float, int]] = field(default_factory=deque)


class Peaks:
    """Readings of many cgroups. `now_seconds` never goes back."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._readings: dict[CgroupRef, _Readings] = {}

    def note(self, now_seconds: float, cgroup: CgroupRef, needed_bytes: int) -> int:
        """A reading; what the cgroup is to be left, at least. O(1) amortised."""
        readings = self._readings.setdefault(cgroup, _Readings(now_seconds))
        for kept, sign in ((readings.highest, 1), (readings.lowest, -1)):
            while kept and kept[-1][1] * sign <= needed_bytes * sign:
                kept.pop()
            kept.append((now_seconds, needed_bytes))
            while kept[0][0] < now_seconds - self._window_seconds:
                kept.popleft()
        highest_bytes, lowest_bytes = readings.highest[0][1], readings.lowest[0][1]
        margin_bytes = (highest_bytes - lowest_bytes) // 2
        if now_seconds - readings.first_seconds < KNOWN_AFTER_SECONDS:
            margin_bytes = max(margin_bytes, highest_bytes // _UNKNOWN_SHARE)
        return highest_bytes + margin_bytes

    def keep(self, cgroups: Set[CgroupRef]) -> None:
        """Forget all others."""
        for cgroup in self._readings.keys() - cgroups:
            del self._readings[cgroup]
