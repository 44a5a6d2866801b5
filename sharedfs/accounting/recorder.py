"""A tape of what happens to pages, for `sharedctl record`: rows that wait in memory until somebody takes them.

Runs under the books' lock. Uses of a file by one tenant become one row as long as their pages adjoin and nobody else
uses the file in between; the row says how many they were. A file that is read from start to end is one row each time
the tape is taken, four times a second. Nothing moves past what it came before or after on its file.

Bounded: a tape that nobody takes is full some day, and then it is over.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sharedfs.api.types import LAST_TRACE_PAGE, NO_LIMIT, Event
from sharedfs.ledger.page_ranges import PageRange, gaps, merged
from sharedfs.ledger.tenant import TenantId

_MOST_ROWS = 1 << 20


class Taken(NamedTuple):
    """Rows as bytes of `Tape`, the paths of tenants that start in them, and the files that they are about.

    `full`: that was the last of it.
    """

    rows: bytes
    tenants: dict[TenantId, str]
    files: frozenset[int]
    full: bool


@dataclass(slots=True)
class Use:
    """A row that may still grow."""

    time_us: int
    event: Event
    tenant: TenantId
    file: int
    first_page: int
    last_page: int
    times: int = 1

    def row(self) -> tuple[int, ...]:
        return self.time_us, self.event, self.tenant, self.file, self.first_page, self.last_page, self.times


class Tape:
    """Rows of TAPE_COLUMNS, as integers."""

    def __init__(self, path_of: Callable[[TenantId], str], clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._path_of = path_of
        self._paths: dict[TenantId, str] = {}
        self._clock_ns = clock_ns
        self._start_ns = clock_ns()
        self._rows: list[tuple[int, ...]] = []
        self._uses: dict[int, Use] = {}
        self._started: set[TenantId] = set()
        self._mapped: dict[tuple[int, TenantId], list[PageRange]] = {}
        self.full = False

    def use(self, event: Event, tenant: TenantId, file: int, first_page: int, last_page: int) -> None:
        """`tenant` touched or allocated a range. One that a trace cannot name (beyond 4 PiB) is left out. O(1)."""
        if last_page > LAST_TRACE_PAGE:
            return
        known = self._uses.get(file)
        if known is not None:
            if (
                known.tenant == tenant
                and known.event is event
                and first_page <= known.last_page + 1
                and last_page >= known.first_page - 1
            ):
                known.first_page = min(known.first_page, first_page)
                known.last_page = max(known.last_page, last_page)
                known.times += 1
                return
            self._rows.append(known.row())
        self._start(tenant)
        self._uses[file] = Use(self._now_us(), event, tenant, file, first_page, last_page)
        self.full = self.full or len(self._rows) + len(self._uses) >= _MOST_ROWS

    def free(self, file: int, first_page: int, last_page: int | None) -> None:
        """A range is resident no more; None: to the end."""
        self._end_all()
        if first_page <= LAST_TRACE_PAGE:
            self._put(
                Event.FREE,
                0,
                file,
                first_page,
                LAST_TRACE_PAGE if last_page is None else min(last_page, LAST_TRACE_PAGE),
            )

    def mapped(self, file: int, tenant: TenantId, ranges: Iterable[PageRange]) -> None:
        """`tenant` maps just these pages of a file: what is new of them is a row, and what is gone."""
        now = merged((first, min(last, LAST_TRACE_PAGE)) for first, last in ranges if first <= LAST_TRACE_PAGE)
        before = self._mapped.get((file, tenant), [])
        if now == before:
            return
        self._end_all()
        self._start(tenant)
        for event, runs, others in ((Event.UNMAP, before, now), (Event.MAP, now, before)):
            for first_page, last_page in runs:
                for first, last in gaps(_within(others, first_page, last_page), first_page, last_page):
                    self._put(event, tenant, file, first, last)
        self._mapped[file, tenant] = now

    def exit(self, tenant: TenantId) -> None:
        if tenant in self._started:
            self._end_all()
            self._put(Event.EXIT, tenant)
            self._started.discard(tenant)
            self._mapped = {key: ranges for key, ranges in self._mapped.items() if key[1] != tenant}

    def take(self) -> Taken:
        """What there is, in the order of time; the tape goes on without."""
        self._end_all()
        rows, self._rows = self._rows, []
        paths, self._paths = self._paths, {}
        rows.sort(key=lambda row: row[0])  # stable: what happened at one time stays in its order
        files = frozenset(row[3] for row in rows if row[3])
        return Taken(array("q", [value for row in rows for value in row]).tobytes(), paths, files, self.full)

    def _start(self, tenant: TenantId) -> None:
        if tenant not in self._started:
            self._started.add(tenant)
            self._paths[tenant] = self._path_of(tenant)
            self._put(Event.START, tenant, 0, 0, 0, NO_LIMIT)

    def _put(
        self,
        event: Event,
        tenant: TenantId | int,
        file: int = 0,
        first_page: int = 0,
        last_page: int = 0,
        value: int = 0,
    ) -> None:
        self._rows.append((self._now_us(), event, tenant, file, first_page, last_page, value))

    def _end_all(self) -> None:
        self._rows += [use.row() for use in self._uses.values()]
        self._uses.clear()

    def _now_us(self) -> int:
        return (self._clock_ns() - self._start_ns) // 1000


def _within(runs: Sequence[PageRange], first_page: int, last_page: int) -> list[PageRange]:
    """The parts of ascending `runs` that are in a range."""
    return [
        (max(first, first_page), min(last, last_page))
        for first, last in runs
        if first <= last_page and last >= first_page
    ]
