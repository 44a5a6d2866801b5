"""One pool's feed, asked over HTTP on its socket.

Only a socket that is not there, or at which nobody listens, says that a pool is gone: its keeper holds the socket for
as long as the pool lives. Every other failure to get an answer is a pool that is late, or this process's own trouble.
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from errno import ECONNREFUSED, ENOENT
from pathlib import Path
from typing import TypeVar

import httpx
import trio
from pydantic import BaseModel, ValidationError

from controller.api.errors import UnknownName
from controller.settlement.admission import Marks
from sharedfs.api.types import (
    BODY_BYTES,
    Allowance,
    AllowanceAbove,
    AllowanceOrder,
    FilesOfTenant,
    HandedOver,
    Holdings,
    PoolRecord,
    UnclaimedPage,
    UsersOfFile,
)
from sharedfs.common.errors import CallerMistake
from sharedfs.common.names import printable, raw_name
from sharedfs.common.paths import POOL_RECORD

ANSWER_SECONDS = 30.0
"""An answer that takes longer is given up, and asked for again."""

PEOPLE_SECONDS = 10.0
"""Of a question that a person waits for: less than `sharedctl` waits for the controller."""

HAND_OVER_SECONDS = 300.0
"""A directory has millions of files at most, and some 30 us a file are needed."""

_JSON = {"content-type": "application/json"}
_GONE = (ECONNREFUSED, ENOENT)
_OF_AN_ORDER = 256
"""Bytes of an order beside its allowances, at most."""

Answer = TypeVar("Answer", bound=BaseModel)
Mark = TypeVar("Mark", Allowance, AllowanceAbove)
Page = TypeVar("Page", FilesOfTenant, UnclaimedPage)


class PoolGone(Exception):
    """Nobody serves this feed: the pool was unmounted, or its keeper is dead."""


class PoolSilent(Exception):
    """The pool lives, as far as is known, but gave no answer that can be used."""


@dataclass(frozen=True, slots=True)
class FilePath:
    """A file as a person names it; `escaped`: with escapes as answers show it, else that or its own letters."""

    text: str
    escaped: bool = False

    @property
    def path(self) -> Path:
        return Path(os.fsdecode(raw_name(self.text)) if self.escaped else self.text)

    def below(self, mount: Path) -> "FilePath":
        """The path relative to a directory that it is below."""
        relative = str(self.path.relative_to(mount))
        return FilePath(printable(os.fsencode(relative)) if self.escaped else relative, self.escaped)

    @property
    def query(self) -> dict[str, str]:
        return {"path": self.text, "escaped": str(self.escaped).lower()}


class Feed:
    """The feed at `socket`. Every question raises PoolGone or PoolSilent when it gets no answer."""

    def __init__(self, socket: Path) -> None:
        self.name = socket.parent.name
        self._record = socket.parent / POOL_RECORD
        self._cgroup: str | None = None
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://pool", timeout=ANSWER_SECONDS)

    async def holdings(self) -> Holdings:
        answer = await self._get(Holdings, "/v1/holdings", {})
        if answer is None:
            raise PoolSilent("it has no holdings")
        return answer

    async def files_of(self, tenant: str) -> AsyncIterator[FilesOfTenant]:
        """The files of which `tenant` uses pages, part by part. No part when the pool does not know `tenant`."""
        async for page in self._pages(FilesOfTenant, "/v1/tenants/files", {"path": tenant}):
            yield page

    async def users_of(self, path: FilePath) -> UsersOfFile | None:
        """None when the pool has no file at `path`, relative to its root. CallerMistake when that may be two files."""
        response = await self._send("GET", "/v1/files/users", params=path.query, timeout=PEOPLE_SECONDS)
        if response.status_code == httpx.codes.CONFLICT:
            raise CallerMistake(response.json()["detail"])
        answer = self._checked(response)
        return None if answer is None else self._read(UsersOfFile, answer)

    async def unclaimed(self) -> AsyncIterator[UnclaimedPage]:
        """The files that nobody uses, part by part. No part from a pool that does not know the question."""
        async for page in self._pages(UnclaimedPage, "/v1/unclaimed", {}):
            yield page

    async def hand_over(self, path: FilePath, tenant: str | None, *, recursive: bool) -> HandedOver:
        """Raises UnknownName when there is no such file or cgroup, CallerMistake for what cannot be handed over."""
        query = {**path.query, "recursive": str(recursive).lower()} | ({} if tenant is None else {"tenant": tenant})
        response = await self._send("PUT", "/v1/owner", params=query, timeout=HAND_OVER_SECONDS)
        try:
            if response.is_client_error:
                detail = response.json()["detail"]
                kind = UnknownName if response.status_code == httpx.codes.NOT_FOUND else CallerMistake
                raise kind(detail if isinstance(detail, str) else detail[0]["msg"])
            return HandedOver.model_validate_json(response.content)
        except (ValueError, LookupError) as error:
            raise PoolSilent(f"its answer to /v1/owner makes no sense: {error}".splitlines()[0]) from error

    async def put_allowances(self, sequence: int, valid_seconds: float, marks: Marks) -> None:
        """How far tenants may grow, in as many orders as fit the pool's bound on a body.

        What they may together comes first, so that it never lapses while there are many orders. A daemon of an earlier
        version refuses that, and counts each alone.
        """
        tenants = (Allowance(path=to.path, inode=to.inode, until_bytes=mark) for to, mark in marks.tenants.items())
        above = (AllowanceAbove(path=path, until_bytes=mark) for path, mark in sorted(marks.above.items()))
        for part_above in _orders(above) if marks.above else ():
            order = AllowanceOrder(sequence=sequence, valid_seconds=valid_seconds, above=part_above)
            answer = await self._send("PUT", "/v1/allowances", content=order.model_dump_json(), headers=_JSON)
            if answer.status_code != httpx.codes.UNPROCESSABLE_ENTITY:
                self._checked(answer)
        for part in _orders(tenants):
            order = AllowanceOrder(sequence=sequence, valid_seconds=valid_seconds, tenants=part)
            body = order.model_dump_json(exclude={"above"})
            await self._ask("PUT", "/v1/allowances", content=body, headers=_JSON)

    def mountpoint(self) -> Path | None:
        """Where the pool is mounted, None when its record does not say."""
        record = self._read_record()
        return None if record is None else Path(record.mountpoint)

    def cgroup(self) -> str:
        """The pool's own cgroup, which stays the same; "/" when its record does not say."""
        if self._cgroup is None and (record := self._read_record()) is not None:
            self._cgroup = record.pool_cgroup
        return self._cgroup or "/"

    def made_cgroup(self) -> str | None:
        """The pool's own cgroup, None where it serves from one that others have made."""
        record = self._read_record()
        return None if record is None or record.pool_cgroup not in record.removable_cgroups else record.pool_cgroup

    async def aclose(self) -> None:
        await self._client.aclose()

    def _read_record(self) -> PoolRecord | None:
        try:
            return PoolRecord.model_validate_json(self._record.read_bytes())
        except (OSError, ValidationError):
            return None

    async def _pages(self, kind: type[Page], url: str, query: Mapping[str, str]) -> AsyncIterator[Page]:
        after: int | None = 0
        while after is not None:
            page = await self._get(kind, url, {**query, "after": str(after)}, timeout=PEOPLE_SECONDS)
            if page is None:
                return
            yield page
            after = page.next_after

    async def _get(
        self, kind: type[Answer], url: str, query: Mapping[str, str], *, timeout: float = ANSWER_SECONDS
    ) -> Answer | None:
        response = await self._ask("GET", url, params=query, timeout=timeout)
        return None if response is None else self._read(kind, response)

    def _read(self, kind: type[Answer], response: httpx.Response) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise PoolSilent(f"its answer to {response.url.path} makes no sense: {error}".splitlines()[0]) from error

    async def _ask(self, method: str, url: str, **what: object) -> httpx.Response | None:
        """The answer, None for 404; every other answer that is not 2xx raises PoolSilent."""
        return self._checked(await self._send(method, url, **what))

    def _checked(self, response: httpx.Response) -> httpx.Response | None:
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if not response.is_success:
            asked = f"{response.request.method} {response.url.path}"
            raise PoolSilent(f"it answers {response.status_code} to {asked}: {response.text[:200].strip()}")
        return response

    async def _send(self, method: str, url: str, **what: object) -> httpx.Response:
        try:
            return await self._client.request(method, url, **what)  # type: ignore[arg-type]
        except (httpx.HTTPError, trio.ClosedResourceError) as error:
            if _errno(error) in _GONE:
                raise PoolGone(f"{type(error).__name__}: {error}") from error
            if isinstance(error, httpx.TimeoutException):
                raise PoolSilent(f"no answer within {what.get('timeout', ANSWER_SECONDS):.0f} s") from error
            raise PoolSilent(f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")) from error


def _errno(error: BaseException | None) -> int | None:
    """The error number of the system call that failed, wherever a library has wrapped it."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _orders(allowances: Iterable[Mark]) -> Iterator[tuple[Mark, ...]]:
    """Parts that fit a body, in order; one at least, which renews what is in force."""
    part: list[Mark] = []
    part_bytes = _OF_AN_ORDER
    for allowance in allowances:
        allowance_bytes = len(allowance.model_dump_json().encode()) + 1
        if part and part_bytes + allowance_bytes > BODY_BYTES:
            yield tuple(part)
            part, part_bytes = [], _OF_AN_ORDER
        part.append(allowance)
        part_bytes += allowance_bytes
    yield tuple(part)
