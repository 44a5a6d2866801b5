"""The feed: what a pool tells the controller and the CLI, as HTTP on a Unix socket that only root can open.

Every answer is one consistent reading of the books, taken under their lock. Where that would be long, a copy is taken,
and the answer is made of it without the lock. OpenAPI is at /openapi.json.
"""

import stat
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from fastapi import FastAPI, HTTPException, Response

from sharedfs.accounting.books import Books
from sharedfs.api.paged_lists import PagedLists
from sharedfs.api.types import (
    FILES_OF_A_PAGE,
    NEW_IN_STATUS,
    AllowanceOrder,
    AuditDifference,
    AuditPage,
    ClassHolding,
    DetachedPart,
    FileHoldings,
    FilesOfTenant,
    HandedOver,
    Holdings,
    InodesPart,
    PoolStatus,
    Remount,
    StateVersion,
    TapeRows,
    TenantRef,
    UnclaimedPage,
    UsersOfFile,
)
from sharedfs.common.errors import CallerMistake
from sharedfs.common.version import VERSION
from sharedfs.daemon.named_files import find_named
from sharedfs.daemon.ownership import NoSuchName, Ownership
from sharedfs.ledger.holdings import even_shares
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, Tenant, TenantId
from sharedfs.linux.cgroups import CgroupRef
from sharedfs.pages.audit import Audit
from sharedfs.pool import schema
from sharedfs.storage.tree import Store

_AUDITED_AT_ONCE = 500


def make_feed(
    name: str,
    store: Store,
    books: Books,
    status: Callable[[], PoolStatus],
    reconfigure: Callable[[str], None],
    unclaimed: Callable[[int], UnclaimedPage],
    ownership: Ownership,
    audit: Audit,
) -> FastAPI:
    """The application; `status` gives what only the daemon knows, `reconfigure` takes mount options.

    `unclaimed` lists files that nobody uses, beyond an inode number; it is called in a thread.
    """
    app = FastAPI(title=f"sharedfs pool {name}", version=VERSION, docs_url=None, redoc_url=None)

    @app.get("/v1/status")
    def get_status(knows: int = 0) -> Response:
        """`knows`: how many of NEW_IN_STATUS whoever asks can read: packages before them refuse the rest."""
        unknown = set(NEW_IN_STATUS[max(0, knows) :])
        return Response(status().model_dump_json(exclude=unknown), media_type="application/json")

    _add_books(app, name, store, books)
    _add_files(app, name, store, books)
    _add_remount(app, reconfigure)
    _add_unclaimed(app, unclaimed)
    _add_owner(app, ownership)
    _add_audit(app, store, books, audit)
    _add_tape(app, name, store, books)
    return app


def add_state_version(app: FastAPI, state_fd: int) -> None:
    @app.get("/v1/state-version")
    def get_state_version() -> StateVersion:
        """What outlives this daemon, for a package that is to follow it. Daemons of version 1 do not answer."""
        kept = schema.kept_in(state_fd)
        return StateVersion(version=kept.version, leaves=kept.leaves)


def _add_books(app: FastAPI, name: str, store: Store, books: Books) -> None:
    """What the controller asks and says each second."""

    @app.get("/v1/holdings")
    def get_holdings() -> Holdings:
        swap_looks, swapped, makings = books.swapped.looks, books.swapped.by_class(), store.table.makings
        reading = books.questions.reading()
        rows, even = _classes(reading.holdings, swapped), even_shares(reading.holdings)
        inodes = _of_live(store.billed_inodes(books.tenants.payer_for), reading.tenants)
        return Holdings(
            pool=name,
            sequence=reading.sequence + swap_looks + makings,
            resident_bytes=sum(held_bytes for _, held_bytes in reading.holdings),
            foreign_bytes=reading.foreign_bytes,
            swapped_bytes=sum(row.bytes for row in rows if row.swapped),
            size_bytes=store.tmpfs.room.size_bytes,
            tenants=tuple(
                TenantRef(
                    id=tenant.id,
                    path=tenant.path,
                    inode=tenant.inode,
                    even_bytes=even.get(tenant.id, 0),
                    handed_bytes=reading.unasked.handed[tenant.id],
                    added_bytes=reading.unasked.added[tenant.id],
                )
                for tenant in reading.tenants
            ),
            classes=rows,
            detached_bytes=sum(reading.detached.values()),
            detached=tuple(DetachedPart(tenant=tenant, bytes=part) for tenant, part in reading.detached.items()),
            inode_bytes=sum(inodes.values()),
            inodes=tuple(InodesPart(tenant=tenant, bytes=part) for tenant, part in inodes.items()),
        )

    @app.put("/v1/allowances", status_code=204)
    def put_allowances(order: AllowanceOrder) -> None:
        """How far tenants may grow: beyond that they are refused (EDQUOT)."""
        marks = {CgroupRef(allowance.path, allowance.inode): allowance.until_bytes for allowance in order.tenants}
        above = {mark.path: mark.until_bytes for mark in order.above}
        if not books.admission.put(order.sequence, marks, order.valid_seconds, above):
            raise HTTPException(409, "later allowances are in force")


def _add_files(app: FastAPI, name: str, store: Store, books: Books) -> None:
    """Who uses which files: in threads, part by part, for there may be a million."""
    lists = PagedLists(FILES_OF_A_PAGE)

    def file_holdings(inode: int, named: dict[TenantId, Tenant]) -> FileHoldings:
        """Who uses a file, by number; `named` gets all of these, for a tenant may exit at any moment."""
        swapped = books.swapped.by_class(inode)
        reading = books.questions.file_reading(inode)
        named.update(reading.tenants)
        path, size_bytes = "", 0
        with store.lock, suppress(OSError):  # gone since the books were read
            node = store.find(inode)
            path, size_bytes = store.display_path(node), store.stat(node).st_size
        return FileHoldings(
            path=path,
            inode=inode,
            size_bytes=size_bytes,
            resident_bytes=sum(size_bytes for _, size_bytes in reading.holdings),
            classes=_classes(reading.holdings, swapped),
            opened=reading.opened,
            by_range=books.mappings.billed_by_range(inode),
        )

    @app.get("/v1/tenants/files")
    def get_files_of_tenant(path: str, after: int = 0) -> FilesOfTenant:
        """The files of which the tenant with this cgroup path pays for pages, a page of the list at a time."""
        live = books.tenants.live()
        tenant = next((tenant.id for tenant in reversed(live) if tenant.path == path), None)
        if tenant is None:
            raise HTTPException(404, f"no tenant {path} in pool {name}")
        inodes, next_after = lists.page(
            tenant, after, lambda: books.questions.files_where(lambda held: tenant in held.payers)
        )
        named: dict[TenantId, Tenant] = {}
        files = tuple(file_holdings(inode, named) for inode in inodes)
        return FilesOfTenant(
            tenants=_tenants(named.values()),
            files=files,
            detached_bytes=books.questions.detached_of(tenant),
            inode_bytes=store.billed_inodes(books.tenants.payer_for).get(tenant, 0),
            next_after=next_after,
        )

    @app.get("/v1/files/users")
    def get_users_of_file(path: str, escaped: bool = False) -> UsersOfFile:
        """Who uses the file at a path relative to the pool's root; `escaped`: as answers show it."""
        with store.lock:
            try:
                node = find_named(store, path, escaped=escaped)
            except OSError as error:
                raise HTTPException(404, f"no file {path} in pool {name}: {error.strerror}") from error
            except CallerMistake as mistake:
                raise HTTPException(409, str(mistake)) from mistake
            is_directory = stat.S_ISDIR(store.stat(node).st_mode)
        if is_directory:
            raise HTTPException(404, f"{path or '/'} in pool {name} is a directory: name a file in it")
        named: dict[TenantId, Tenant] = {}
        file = file_holdings(node.inode, named)
        return UsersOfFile(tenants=_tenants(named.values()), file=file)


def _add_remount(app: FastAPI, reconfigure: Callable[[str], None]) -> None:
    @app.post("/v1/remount", status_code=204)
    async def post_remount(remount: Remount) -> None:
        """Change size and other options; the mount's flags are the caller's to change."""
        try:
            reconfigure(remount.options)
        except CallerMistake as mistake:
            raise HTTPException(409, str(mistake)) from mistake


def _add_unclaimed(app: FastAPI, unclaimed: Callable[[int], UnclaimedPage]) -> None:
    @app.get("/v1/unclaimed")
    def get_unclaimed(after: int = 0) -> UnclaimedPage:
        """The files with pages that nobody uses, and those that were spilled for that, a page of the list at a time."""
        return unclaimed(after)


def _add_owner(app: FastAPI, ownership: Ownership) -> None:
    @app.put("/v1/owner")
    def put_owner(path: str, tenant: str | None = None, recursive: bool = False, escaped: bool = False) -> HandedOver:
        """Hand a file over to the tenant with this cgroup path, or to nobody; in a thread, for it may take long."""
        try:
            return ownership.hand_over(path, tenant, recursive=recursive, escaped=escaped)
        except CallerMistake as mistake:
            raise HTTPException(404 if isinstance(mistake, NoSuchName) else 409, str(mistake)) from mistake


def _add_audit(app: FastAPI, store: Store, books: Books, audit: Audit) -> None:
    lists = PagedLists(_AUDITED_AT_ONCE)

    def path_of(inode: int) -> str:
        with store.lock, suppress(OSError):
            return store.display_path(store.find(inode))
        return ""

    @app.post("/v1/audit")
    def post_audit(after: int = 0, repair: bool = False) -> AuditPage:
        """Compare books, files, charges and page tables, a part of the files at a time.

        Takes seconds where they differ. With `repair` what can be put right is.
        """
        inodes, next_after = lists.page("audit", after, lambda: sorted({*books.questions.files(), *store.nodes}))
        found = audit.differences(inodes, mappings=after == 0)
        left = audit.repair(found, mappings=after == 0) if repair and found else found
        return AuditPage(
            files=len(inodes),
            pages=sum(books.questions.resident_bytes_of(inode) for inode in inodes) // books.page_bytes,
            repaired=len({one.inode for one in found} - {one.inode for one in left}),
            differences=tuple(
                AuditDifference(
                    path=path_of(one.inode),
                    inode=one.inode,
                    first_page=one.first,
                    last_page=one.last,
                    books=one.books,
                    kernel=one.kernel,
                )
                for one in left
            ),
            next_after=next_after,
        )


def _add_tape(app: FastAPI, name: str, store: Store, books: Books) -> None:
    """What `sharedctl record` asks."""

    def file_path(inode: int) -> str:
        with store.lock, suppress(OSError):
            return store.display_path(store.find(inode))
        return ""

    @app.post("/v1/tape", status_code=204)
    async def post_tape() -> None:
        """Record what happens to pages, from now on, beginning with what is there."""
        if not books.recording.begin():
            raise HTTPException(409, f"somebody records pool {name} already")

    @app.get("/v1/tape")
    async def get_tape() -> TapeRows:
        """What was recorded since the last call. Take it often: a tape that is full is over."""
        taken = books.recording.take()
        if taken is None:
            raise HTTPException(404, f"nobody records pool {name}")
        return TapeRows(
            rows=b64encode(taken.rows).decode(),
            tenants={int(tenant): path for tenant, path in taken.tenants.items()},
            files={inode: file_path(inode) for inode in taken.files},
            full=taken.full,
        )

    @app.delete("/v1/tape", status_code=204)
    async def delete_tape() -> None:
        books.recording.end()


def _of_live(billed: Mapping[int, int], live: Iterable[Tenant]) -> dict[int, int]:
    """What makers pay that live; what others made is nobody's."""
    known, parts = {tenant.id for tenant in live}, Counter[int]()
    for maker, part in billed.items():
        parts[maker if maker in known else NOBODY] += part
    return dict(parts)


def _tenants(live: Iterable[Tenant]) -> tuple[TenantRef, ...]:
    return tuple(TenantRef(id=tenant.id, path=tenant.path, inode=tenant.inode) for tenant in live)


def _classes(
    holdings: Iterable[tuple[SharingClass, int]], swapped: Mapping[SharingClass, int]
) -> tuple[ClassHolding, ...]:
    rows: list[ClassHolding] = []
    for sharing, size_bytes in holdings:
        swapped_bytes = min(swapped.get(sharing, 0), size_bytes)  # it was looked at before
        rows += (
            ClassHolding(
                owner=sharing.owner,
                payers=tuple(sorted(sharing.payers)),
                mapped=tuple(sorted(sharing.mapped)),
                foreign=sharing.foreign,
                bytes=part_bytes,
                swapped=in_swap,
            )
            for in_swap, part_bytes in ((False, size_bytes - swapped_bytes), (True, swapped_bytes))
            if part_bytes
        )
    return tuple(rows)
