"""A pool as the controller sees it: a feed on its own socket, and books that the test writes."""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import trio
from fastapi import FastAPI, Response

from sharedfs.api.http_server import serve_http
from sharedfs.api.types import (
    AllowanceOrder,
    ClassHolding,
    FileHoldings,
    FilesOfTenant,
    Holdings,
    PoolRecord,
    TenantRef,
    UsersOfFile,
)
from sharedfs.linux.cgroups import CgroupRef


@dataclass
class FakePool:
    """Files are lists of `(bytes, users)`, the first of whom allocated them, or `(bytes, users, owner)` for pages that
    the kernel charges to `owner`."""

    run_directory: Path
    name: str = "demo"
    mountpoint: str = "/mnt/demo"
    files: dict[str, list[tuple[int, tuple[CgroupRef, ...]] | tuple[int, tuple[CgroupRef, ...], CgroupRef]]] = field(
        default_factory=dict
    )
    idle: set[CgroupRef] = field(default_factory=set)
    misreport: int = 0
    sequence: int = 0
    delay_seconds: float = 0
    """So long a question for the holdings waits for its answer."""
    refuses_orders_with: int | None = None
    files_of_a_page: int = 1000
    allowed: dict[str, int | None] = field(default_factory=dict)
    allowed_above: dict[str, int] = field(default_factory=dict)
    knows_above: bool = True
    """False: it is of a version that refuses what it does not know."""
    orders: int = 0
    _loop: trio.lowlevel.TrioToken | None = None
    _stop: trio.Event | None = None

    def __enter__(self) -> Self:
        self.directory = self.run_directory / "pools" / self.name
        self.directory.mkdir(parents=True)
        record = PoolRecord(
            name=self.name,
            mountpoint=self.mountpoint,
            keeper_pid=1,
            pool_cgroup="/pool",
            removable_cgroups=(),
        )
        (self.directory / "pool.json").write_text(record.model_dump_json())
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready.set))
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """The daemon is killed: its socket stays and nobody listens."""
        if self._loop is not None and self._stop is not None:
            self._loop.run_sync_soon(self._stop.set)
            self._thread.join()
            self._loop = None

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._loop = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        socket_path = self.directory / "feed.sock"
        socket_path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(socket_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_http, self._api(), listener))
            ready()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    def _api(self) -> FastAPI:
        api = FastAPI()

        def answer(model: Holdings | FilesOfTenant | UsersOfFile) -> Response:
            return Response(model.model_dump_json(), media_type="application/json")

        @api.get("/v1/holdings")
        async def holdings() -> Response:
            told = self.holdings()
            await trio.sleep(self.delay_seconds)
            return answer(told)

        @api.put("/v1/allowances")
        async def allowances(order: AllowanceOrder) -> Response:
            if self.refuses_orders_with is not None:
                return Response(json.dumps({"detail": "not today"}), self.refuses_orders_with)
            if order.above and not self.knows_above:
                return Response(json.dumps({"detail": "extra inputs are not permitted"}), 422)
            self.orders += 1
            self.allowed_above |= {mark.path: mark.until_bytes for mark in order.above}
            self.allowed |= {allowance.path: allowance.until_bytes for allowance in order.tenants}
            return Response(status_code=204)

        @api.get("/v1/tenants/files")
        async def files(path: str, after: int = 0) -> Response:
            await trio.sleep(self.delay_seconds)
            if path not in {tenant.path for tenant in self._tenants()}:
                return Response(json.dumps({"detail": "no such tenant"}), 404)
            used = [file for file in map(self._file, self.files) if any(self._uses(h, path) for h in file.classes)]
            page = [file for file in used if file.inode > after]
            listed, left = page[: self.files_of_a_page], page[self.files_of_a_page :]
            next_after = listed[-1].inode if left else None
            return answer(FilesOfTenant(tenants=self._refs(), files=tuple(listed), next_after=next_after))

        @api.get("/v1/files/users")
        async def users(path: str) -> Response:
            if path not in self.files:
                return Response(json.dumps({"detail": "no such file"}), 404)
            return answer(UsersOfFile(tenants=self._refs(), file=self._file(path)))

        return api

    def holdings(self) -> Holdings:
        rows = [row for name in self.files for row in self._file(name).classes]
        self.sequence += 1
        return Holdings(
            pool=self.name,
            sequence=self.sequence,
            resident_bytes=sum(row.bytes for row in rows) + self.misreport,
            foreign_bytes=sum(row.bytes for row in rows if row.foreign),
            tenants=self._refs(),
            classes=tuple(rows),
        )

    def _tenants(self) -> list[CgroupRef]:
        users = {user for rows in self.files.values() for row in rows for user in (*row[1], *row[2:])}
        return sorted(users | self.idle, key=lambda user: user.path)

    def _refs(self) -> tuple[TenantRef, ...]:
        return tuple(TenantRef(id=n, path=t.path, inode=t.inode) for n, t in enumerate(self._tenants(), 1))

    def _ids(self, tenants: Iterable[CgroupRef]) -> tuple[int, ...]:
        known = self._tenants()
        return tuple(known.index(tenant) + 1 for tenant in tenants)

    def _uses(self, held: ClassHolding, path: str) -> bool:
        return any(self._tenants()[user - 1].path == path for user in held.payers)

    def _file(self, name: str) -> FileHoldings:
        rows = tuple(
            ClassHolding(
                owner=next(iter(self._ids(row[2:] or row[1])), 0),
                payers=self._ids(row[1]),
                mapped=(),
                foreign=len(row) > 2,
                bytes=row[0],
            )
            for row in self.files[name]
        )
        total = sum(row.bytes for row in rows)
        inode = 1 + list(self.files).index(name)
        return FileHoldings(path=name, inode=inode, size_bytes=total, resident_bytes=total, classes=rows)
