"""The pools of this host, as their feeds show them: found by looking, asked all at once, dropped when they die."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import trio
from pydantic import BaseModel, ValidationError

from controller.billing.books import Books, cgroup_of, read_holdings
from controller.mistakes import UnknownName
from sharedfs.feed_types import (
    Allowance,
    AllowanceOrder,
    FilesOfTenant,
    Holdings,
    PoolRecord,
    UnclaimedFiles,
    UsersOfFile,
)
from sharedfs.kernel.cgroups import CgroupRef

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""A feed answers from its books in memory; one that takes longer is in trouble, and must not hold up settlement."""

_JSON = {"content-type": "application/json"}

Answer = TypeVar("Answer", bound=BaseModel)


class PoolGone(Exception):
    """Nobody serves this feed: its daemon is dead or was unmounted."""


class PoolSilent(Exception):
    """Somebody serves this feed, but gave no answer that can be used."""


@dataclass(frozen=True, slots=True)
class PoolBooks:
    """One answer of a pool: its books, and the even shares of all its live tenants, those too that use nothing.

    `cgroup` is the pool's own, which the kernel charges for its pages; "/" when that is not known.
    """

    pool: str
    books: Books
    even_bytes: Mapping[CgroupRef, int]
    cgroup: str

    @property
    def tenants(self) -> frozenset[CgroupRef]:
        return frozenset(self.even_bytes)


class Feed:
    """One pool's feed. Every question raises PoolGone or PoolSilent when it gets no answer."""

    def __init__(self, socket: Path) -> None:
        self.name = socket.parent.name
        self._record = socket.parent / "pool.json"
        self._cgroup: str | None = None
        self.allowed: Mapping[CgroupRef, int | None] = {}
        self.allowed_seconds = float("-inf")
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://pool", timeout=ANSWER_SECONDS)

    async def holdings(self) -> Holdings:
        answer = await self._get(Holdings, "/v1/holdings")
        if answer is None:
            raise PoolSilent("it has no holdings")
        return answer

    async def files_of(self, tenant: str) -> FilesOfTenant | None:
        """None when the pool does not know `tenant`."""
        return await self._get(FilesOfTenant, "/v1/tenants/files", path=tenant)

    async def users_of(self, path: str) -> UsersOfFile | None:
        """None when the pool has no file at `path`, relative to its root."""
        return await self._get(UsersOfFile, "/v1/files/users", path=path)

    async def put_allowances(self, order: AllowanceOrder) -> None:
        """Also where it is refused, because later ones are there, or the pool is of a kind that knows of none."""
        try:
            await self._client.put("/v1/allowances", content=order.model_dump_json(), headers=_JSON)
        except httpx.ConnectError as error:
            raise PoolGone(str(error)) from error
        except httpx.HTTPError as error:
            raise PoolSilent(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    async def unclaimed(self) -> UnclaimedFiles | None:
        """The files that nobody uses. None from a pool that does not know the question."""
        return await self._get(UnclaimedFiles, "/v1/unclaimed")

    def mountpoint(self) -> Path | None:
        """Where the pool is mounted, None when its record does not say."""
        record = self._read_record()
        return None if record is None else Path(record.mountpoint)

    def cgroup(self) -> str:
        """The pool's own cgroup, which stays the same; "/" when its record does not say."""
        if self._cgroup is None and (record := self._read_record()) is not None:
            self._cgroup = record.pool_cgroup
        return self._cgroup or "/"

    async def aclose(self) -> None:
        await self._client.aclose()

    def _read_record(self) -> PoolRecord | None:
        try:
            return PoolRecord.model_validate_json(self._record.read_bytes())
        except (OSError, ValidationError):
            return None

    async def _get(self, kind: type[Answer], url: str, **query: str) -> Answer | None:
        try:
            response = await self._client.get(url, params=query)
            if response.status_code == httpx.codes.NOT_FOUND:
                return None
            response.raise_for_status()
            return kind.model_validate_json(response.content)
        except httpx.ConnectError as error:
            raise PoolGone(str(error)) from error
        except (httpx.HTTPError, ValidationError) as error:
            raise PoolSilent(f"{type(error).__name__}: {error}".splitlines()[0]) from error


class Pools:
    """All pools below one directory."""

    def __init__(self, directory: Path, patience_seconds: float) -> None:
        self._directory = directory
        self._patience_seconds = patience_seconds
        self._feeds: dict[Path, Feed] = {}
        self._known: dict[Path, tuple[float, PoolBooks]] = {}

    async def fetch(self) -> list[PoolBooks]:
        """The books of every pool that lives, by name. A silent one's last books stand in while we are patient.

        Raises BrokenInvariant when a pool's books do not add up (I1).
        """
        sockets = set(self._directory.glob("*/feed.sock"))
        for socket in self._feeds.keys() - sockets:
            await self._drop(socket, "its feed is gone")
        async with trio.open_nursery() as nursery:
            for socket in sockets:
                nursery.start_soon(self._ask, socket, name=f"ask pool {socket.parent.name}")
        return [books for _, (_, books) in sorted(self._known.items())]

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds of the pools on the bill."""
        return [self._feeds[socket] for socket in sorted(self._known)]

    def locate(self, path: Path) -> tuple[Feed, str]:
        """The pool on whose mount the absolute `path` is, by name alone, and the path below the mount.

        Raises UnknownName when there is none.
        """
        mounts = {mount: feed for feed in self.feeds if (mount := feed.mountpoint()) is not None}
        for mount in sorted(mounts, key=lambda mount: -len(mount.parts)):
            if path.is_relative_to(mount):
                return mounts[mount], str(path.relative_to(mount))
        listed = ", ".join(str(mount) for mount in sorted(mounts)) or "none"
        raise UnknownName(f"{path} is on no pool: the mountpoints are {listed}")

    async def allow(self, marks: Mapping[str, Mapping[CgroupRef, int | None]], valid_seconds: float) -> None:
        """Tell each pool how far its tenants may grow, where that has changed or is old. Nobody waits for an answer."""
        async with trio.open_nursery() as nursery:
            for feed in self.feeds:
                if feed.name in marks:
                    nursery.start_soon(self._allow, feed, marks[feed.name], valid_seconds, name=f"allow in {feed.name}")

    async def _allow(self, feed: Feed, marks: Mapping[CgroupRef, int | None], valid_seconds: float) -> None:
        now = trio.current_time()
        if feed.allowed == marks and now - feed.allowed_seconds < valid_seconds / 4:
            return
        order = AllowanceOrder(
            sequence=time.time_ns(),  # later than any of an earlier controller
            valid_seconds=valid_seconds,
            tenants=tuple(Allowance(path=to.path, inode=to.inode, until_bytes=mark) for to, mark in marks.items()),
        )
        try:
            await feed.put_allowances(order)
        except (PoolGone, PoolSilent):
            return  # the next fetch says so
        feed.allowed, feed.allowed_seconds = marks, now

    async def aclose(self) -> None:
        for feed in self._feeds.values():
            await feed.aclose()

    async def _ask(self, socket: Path) -> None:
        feed = self._feeds.get(socket)
        if feed is None:
            feed = self._feeds[socket] = Feed(socket)
        try:
            holdings = await feed.holdings()
        except PoolGone as gone:
            await self._drop(socket, str(gone))
        except PoolSilent as silent:
            asked, _ = self._known.get(socket, (float("-inf"), None))
            if trio.current_time() - asked > self._patience_seconds:
                await self._drop(socket, str(silent))
        else:
            if socket not in self._known:
                log.info("pool %s: found", feed.name)
            even_bytes = {cgroup_of(tenant): tenant.even_bytes for tenant in holdings.tenants}
            books = PoolBooks(feed.name, read_holdings(holdings), even_bytes, feed.cgroup())
            self._known[socket] = trio.current_time(), books

    async def _drop(self, socket: Path, why: str) -> None:
        """Forget a pool; it is looked for again at the next fetch, and said only once that it is gone."""
        if self._known.pop(socket, None) is not None:
            log.warning("pool %s: dropped: %s", socket.parent.name, why)
        await self._feeds.pop(socket).aclose()
