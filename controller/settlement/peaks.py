"""What a cgroup has needed: a limit written at a lull must not kill at the next peak (I5). Pure.

Of late: usage is looked at twice a second, and what swings faster is seen at some of its points only. So beside the
highest reading of the last ten seconds, half of the swing between highest and lowest is left; and an eighth of the
highest as long as a cgroup has been looked at for less than two seconds, when nothing is known of its swing.

For long: the highest reading of the last hour, by the minute. Work that comes back does so every few seconds, every few
minutes (probes, batches, cron) or every hour at the latest; a need that is older is a new one. A burst between two
readings is seen where it breaks the kernel's own record of usage (memory.peak, memory.max_usage_in_bytes).
"""

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from sharedfs.linux.cgroups import CgroupRef

WINDOW_SECONDS = 10.0
KNOWN_AFTER_SECONDS = 2.0
REMEMBERED_SECONDS = 3600.0
_UNKNOWN_SHARE = 8
_BUCKET_SECONDS = 60.0


@dataclass(slots=True)
class _Readings:
    """`highest` falls and `lowest` rises from left to right: what can still become the extreme of the window.

    `peaks` is as `highest`, for the hour: one entry a minute at most. `record_bytes` and `cache_bytes` are the kernel's
    record and the page cache at the last reading.
    """

    first_seconds: float
    record_bytes: int
    cache_bytes: int
    highest: deque[tuple[float, int]] = field(default_factory=deque)
    lowest: deque[tuple[float, int]] = field(default_factory=deque)
    peaks: deque[tuple[float, int]] = field(default_factory=deque)


class Peaks:
    """Readings of many cgroups. `now_seconds` never goes back. `remembered` are needs of an earlier life."""

    def __init__(
        self, window_seconds: float = WINDOW_SECONDS, remembered: Mapping[CgroupRef, int] | None = None
    ) -> None:
        self._window_seconds = window_seconds
        self._readings: dict[CgroupRef, _Readings] = {}
        self._earlier = dict(remembered or {})

    def note(
        self, now_seconds: float, cgroup: CgroupRef, needed_bytes: int, cache_bytes: int = 0, record_bytes: int = 0
    ) -> int:
        """A reading; what the cgroup is to be left, at least. O(1) amortised."""
        readings = self._readings.get(cgroup)
        if readings is None:
            readings = self._readings[cgroup] = _Readings(now_seconds, record_bytes, cache_bytes)
            _push(readings.peaks, now_seconds, self._earlier.pop(cgroup, 0), REMEMBERED_SECONDS, 1)
        _push(readings.highest, now_seconds, needed_bytes, self._window_seconds, 1)
        _push(readings.lowest, now_seconds, needed_bytes, self._window_seconds, -1)
        highest_bytes, lowest_bytes = readings.highest[0][1], readings.lowest[0][1]
        margin_bytes = (highest_bytes - lowest_bytes) // 2
        minute = now_seconds // _BUCKET_SECONDS * _BUCKET_SECONDS
        peak_bytes = highest_bytes
        if record_bytes > readings.record_bytes:
            peak_bytes = max(peak_bytes, record_bytes - max(cache_bytes, readings.cache_bytes))
        readings.record_bytes, readings.cache_bytes = record_bytes, cache_bytes
        _push(readings.peaks, minute, peak_bytes, REMEMBERED_SECONDS + _BUCKET_SECONDS, 1)
        if now_seconds - readings.first_seconds < KNOWN_AFTER_SECONDS:
            margin_bytes = max(margin_bytes, highest_bytes // _UNKNOWN_SHARE)
        return highest_bytes + margin_bytes

    def remembered(self, cgroup: CgroupRef) -> int:
        """The most that the cgroup has needed within the hour; 0 for one that was never noted."""
        readings = self._readings.get(cgroup)
        return 0 if readings is None else readings.peaks[0][1]

    def keep(self, cgroups: Set[CgroupRef]) -> None:
        """Forget all others."""
        for cgroup in self._readings.keys() - cgroups:
            del self._readings[cgroup]


def _push(kept: deque[tuple[float, int]], now_seconds: float, value: int, window_seconds: float, sign: int) -> None:
    """`value` at the end, without those before it that it outdoes, nor those that are older than the window."""
    while kept and kept[-1][1] * sign <= value * sign:
        kept.pop()
    if not kept or kept[-1][0] != now_seconds:
        kept.append((now_seconds, value))
    while kept[0][0] < now_seconds - window_seconds:
        kept.popleft()
