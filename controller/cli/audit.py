"""`sharedctl audit`: whether pools' books say what their tmpfs, the kernel's charges and page tables say.

It asks the pools' daemons, and needs no controller. It prints each difference, and ends with 1 when there is one.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import click

from sharedfs.api import unix_client
from sharedfs.api.types import AuditDifference, AuditPage
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.terminal import print_table, say
from sharedfs.common.units import PAGE_BYTES, format_size

_UNKNOWN = 404
_ANSWER_SECONDS = 60.0  # for a part of the files: some are looked at four times


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedPool:
    """What one pool's daemon found. `repaired` files differed before, and do not any more."""

    pool: str
    files: int
    resident_bytes: int
    repaired: int
    differences: list[AuditDifference]

    def as_json(self) -> dict[str, object]:
        return asdict(replace(self, differences=[])) | {"differences": [one.model_dump() for one in self.differences]}


def run(pools: Sequence[str], *, repair: bool, as_json: bool) -> bool:
    """Whether nothing differs."""
    there = _all_pools()
    for pool in pools:
        if pool not in there:
            raise CallerMistake(f"there is no pool {pool!r}: `sharedfs status` lists {', '.join(there)}")
    audited = [_audit(pool, repair=repair) for pool in pools or there]
    if as_json:
        click.echo(json.dumps({"pools": [pool.as_json() for pool in audited]}, indent=2))
    else:
        _show(audited)
    return not any(pool.differences for pool in audited)


def _all_pools() -> list[str]:
    directory = paths.pools_directory()
    found = sorted(place.name for place in directory.iterdir()) if directory.exists() else []
    if not found:
        raise CallerMistake("no pools: mount one with `sharedfs mount MOUNTPOINT`")
    return found


def _audit(pool: str, *, repair: bool) -> AuditedPool:
    files = pages = repaired = 0
    differences: list[AuditDifference] = []
    for part in _parts(pool, repair=repair):
        files += part.files
        pages += part.pages
        repaired += part.repaired
        differences += part.differences
        if sys.stderr.isatty():
            click.echo(f"\r{pool}: {files:,} files", nl=False, err=True)
    if sys.stderr.isatty():
        click.echo("\r", nl=False, err=True)
    return AuditedPool(
        pool=pool, files=files, resident_bytes=pages * PAGE_BYTES, repaired=repaired, differences=differences
    )


def _parts(pool: str, *, repair: bool) -> Iterator[AuditPage]:
    after: int | None = 0
    while after is not None:
        query = {"after": str(after), "repair": str(repair).lower()}
        try:
            answer = unix_client.ask(
                paths.feed_socket(pool), "POST", "/v1/audit", query=query, timeout_seconds=_ANSWER_SECONDS
            )
        except unix_client.NoAnswer as error:
            raise HostFault(f"pool {pool} does not answer ({error}): see `sharedfs status`") from error
        if answer.status == _UNKNOWN:
            raise HostFault(f"the daemon of pool {pool} is of an older version: `sharedfs reload` renews it")
        if not answer.is_success:
            raise HostFault(f"pool {pool} cannot be audited ({answer.status}): {paths.daemon_log(pool)} may say why")
        part = AuditPage.model_validate_json(answer.content)
        yield part
        after = part.next_after


def _show(audited: Sequence[AuditedPool]) -> None:
    rows = [
        (pool.pool, one.path or f"(inode {one.inode})", _pages(one), one.books, one.kernel)
        for pool in audited
        for one in pool.differences
    ]
    if rows:
        print_table(("POOL", "FILE", "PAGES", "BOOKS", "KERNEL"), rows, texts=5)
    for pool in audited:
        told = f"{len(pool.differences)} differences" if pool.differences else "no differences"
        mended = f"; {pool.repaired} files mended" if pool.repaired else ""
        say(f"{pool.pool}: {pool.files:,} files, {format_size(pool.resident_bytes)}: {told}{mended}")


def _pages(one: AuditDifference) -> str:
    first, last = one.first_page, one.last_page
    return str(first) if first == last else f"{first}-{last}"
