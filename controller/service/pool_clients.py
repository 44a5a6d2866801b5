"""The pools of this host, as their feeds show them: found by looking, and asked all at once.

A pool is dropped when its keeper is gone, and for nothing else. One that answers late, or not at all, keeps its last
books, which tell their age; a settlement waits SETTLEMENT_SECONDS for answers, and the answer that comes later counts
from the next settlement on.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from controller.api.errors import UnknownName
from controller.api.types import PoolAnswers
from controller.billing.holdings import PoolBooks, cgroup_of, read_holdings, read_unasked
from controller.service.feed_client import Feed, FilePath, PoolGone, PoolSilent
from controller.settlement.admission import Marks
from sharedfs.common.errors import BrokenInvariant
from sharedfs.common.paths import FEED_SOCKET

log = logging.getLogger(__name__)

SETTLEMENT_SECONDS = 1.0
"""So long a settlement waits for answers. A feed answers from its books in memory: most take some milliseconds."""


@dataclass(slots=True)
class _Pool:
    """What is known of one pool. `asked_seconds` is when the question was asked that `books` answer."""

    feed: Feed
    found_seconds: float
    books: PoolBooks | None = None
    asked_seconds: float = float("-inf")
    asking: trio.Event | None = None
    ordering: trio.Event | None = None
    is_late: bool = False
    errors: int = 0
    last_error: str = ""
    complaints: set[str] = field(default_factory=set)
    allowed: Marks | None = None
    allowed_seconds: float = float("-inf")

    def complain(self, why: str) -> None:
        """Count what went wrong, and say it once, not at each settlement."""
        self.errors += 1
        self.last_error = why
        if why not in self.complaints:
            self.complaints.add(why)
            log.warning("pool %s: %s", self.feed.name, why)


class Pools:
    """All pools below one directory. Questions under way run in `nursery`."""

    def __init__(self, directory: Path, patience_seconds: float, nursery: trio.Nursery) -> None:
        self._directory = directory
        self._patience_seconds = patience_seconds
        self._nursery = nursery
        self._pools: dict[Path, _Pool] = {}
        self._broken: BrokenInvariant | None = None

    async def fetch(self) -> list[PoolBooks]:
        """The books of every pool that has ever answered, by name. Those of a late one are its last.

        Raises BrokenInvariant when a pool's books do not add up (I1).
        """
        sockets = set(self._directory.glob(f"*/{FEED_SOCKET}"))
        for socket in self._pools.keys() - sockets:
            await self._drop(socket, "its feed is gone")
        began_seconds = trio.current_time()
        with trio.move_on_after(SETTLEMENT_SECONDS):
            for _ in range(2):  # what is under way already may tell of the time before
                for socket in sockets:
                    self._ask(socket, began_seconds)
                for pool in self._prompt():
                    if pool.asking is not None:
                        await pool.asking.wait()
        if self._broken is not None:
            raise self._broken
        self._tell_of_late_ones()
        return [pool.books for _, pool in sorted(self._pools.items()) if pool.books is not None]

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds of the pools on the bill."""
        return [pool.feed for _, pool in sorted(self._pools.items()) if pool.books is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every pool that lives has answered once: who is on no bill then uses no pool."""
        return all(pool.books is not None for pool in self._pools.values())

    def states(self) -> tuple[PoolAnswers, ...]:
        """All pools that live, by name."""
        now = trio.current_time()
        return tuple(
            PoolAnswers(
                pool=pool.feed.name,
                age_seconds=None if pool.books is None else round(now - pool.asked_seconds, 3),
                errors=pool.errors,
                last_error=pool.last_error,
            )
            for _, pool in sorted(self._pools.items())
        )

    def locate(self, file: FilePath) -> tuple[Feed, FilePath]:
        """The pool on whose mount a file with an absolute path is, by name alone, and the path below the mount.

        Raises UnknownName when there is none.
        """
        mounts = {mount: feed for feed in self.feeds if (mount := feed.mountpoint()) is not None}
        for mount in sorted(mounts, key=lambda mount: -len(mount.parts)):
            if file.path.is_relative_to(mount):
                return mounts[mount], file.below(mount)
        listed = ", ".join(str(mount) for mount in sorted(mounts)) or "none"
        raise UnknownName(f"{file.text} is on no pool: the mountpoints are {listed}")

    async def allow(self, marks: Mapping[str, Marks], valid_seconds: float) -> None:
        """Tell each pool how far its tenants may grow, where that has changed or is old."""
        now = trio.current_time()
        for pool in self._pools.values():
            wanted = marks.get(pool.feed.name)
            is_due = pool.allowed != wanted or now - pool.allowed_seconds >= valid_seconds / 4
            if wanted is not None and is_due and pool.ordering is None:
                pool.ordering = trio.Event()
                self._nursery.start_soon(self._allow, pool, pool.ordering, wanted, valid_seconds)
        with trio.move_on_after(SETTLEMENT_SECONDS):
            for pool in self._prompt():
                if pool.ordering is not None:
                    await pool.ordering.wait()

    async def _allow(self, pool: _Pool, done: trio.Event, marks: Marks, valid_seconds: float) -> None:
        now = trio.current_time()
        try:
            # The number is later than any of an earlier controller.
            await pool.feed.put_allowances(time.time_ns(), valid_seconds, marks)
        except PoolGone:
            pass  # the next fetch says so
        except PoolSilent as silent:
            pool.complain(f"allowances are not in force: {silent}")
        else:
            pool.allowed, pool.allowed_seconds = marks, now
        finally:
            pool.ordering = None
            done.set()

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.feed.aclose()

    def _ask(self, socket: Path, since_seconds: float) -> None:
        """Have a question under way, unless there is one, or one was asked since that time and is answered."""
        pool = self._pools.get(socket)
        if pool is None:
            pool = self._pools[socket] = _Pool(Feed(socket), trio.current_time())
        if pool.asking is None and pool.asked_seconds < since_seconds:
            pool.asking = trio.Event()
            self._nursery.start_soon(self._hear, socket, pool, pool.asking, name=f"ask pool {pool.feed.name}")

    async def _hear(self, socket: Path, pool: _Pool, answered: trio.Event) -> None:
        asked_seconds = trio.current_time()
        try:
            holdings = await pool.feed.holdings()
            even_bytes = {cgroup_of(tenant): tenant.even_bytes for tenant in holdings.tenants}
            unasked = read_unasked(holdings.tenants)
            books = PoolBooks(
                pool.feed.name,
                read_holdings(holdings),
                even_bytes,
                pool.feed.cgroup(),
                unasked,
                holdings.size_bytes,
            )
        except PoolGone as gone:
            await self._drop(socket, str(gone))
        except PoolSilent as silent:
            pool.complain(str(silent))
        except BrokenInvariant as broken:
            self._broken = broken
        else:
            if pool.books is None:
                log.info("pool %s: found", pool.feed.name)
            pool.books, pool.asked_seconds = books, asked_seconds
        finally:
            pool.asking = None
            answered.set()

    def _prompt(self) -> list[_Pool]:
        """The pools that a settlement waits for: a late one does not hold up the tenants of the others."""
        return [pool for pool in self._pools.values() if not pool.is_late]

    def _tell_of_late_ones(self) -> None:
        now = trio.current_time()
        for pool in self._pools.values():
            waited_seconds = now - max(pool.asked_seconds, pool.found_seconds)
            was_late, pool.is_late = pool.is_late, waited_seconds > self._patience_seconds
            if pool.books is not None and pool.is_late != was_late:
                if pool.is_late:
                    age_seconds = now - pool.asked_seconds
                    log.warning("pool %s: late: its books of %.1f s ago stay", pool.feed.name, age_seconds)
                else:
                    log.info("pool %s: answers again", pool.feed.name)

    async def _drop(self, socket: Path, why: str) -> None:
        """Forget a pool; it is looked for again at the next fetch, and said only once that it is gone."""
        pool = self._pools.pop(socket, None)
        if pool is not None:
            if pool.books is not None:
                log.warning("pool %s: dropped: %s", pool.feed.name, why)
            await pool.feed.aclose()
