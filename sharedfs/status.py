"""`sharedfs status`: what each pool says of itself on its feed."""

import httpx
from rich.console import Console
from rich.table import Table

from sharedfs import places, pools
from sharedfs.feed_types import PoolRecord, PoolStatus
from sharedfs.mounting import require_root
from sharedfs.units import format_size

_ANSWER_SECONDS = 10.0


def of_all_pools() -> tuple[list[PoolStatus], list[PoolRecord]]:
    """The pools that answer, and the records of those whose daemon is dead. One that still starts is neither."""
    require_root()
    answered, dead = [], []
    for record in pools.records():
        if not pools.is_served(record):
            dead.append(record)
            continue
        status = of_pool(record.name)
        if status is not None:
            answered.append(status)
    return answered, dead


def of_pool(name: str) -> PoolStatus | None:
    transport = httpx.HTTPTransport(uds=str(places.feed_socket(name)))
    with httpx.Client(transport=transport, base_url="http://pool", timeout=_ANSWER_SECONDS) as client:
        try:
            answer = client.get("/v1/status").raise_for_status()
        except (httpx.ConnectError, httpx.RemoteProtocolError):
            return None
        return PoolStatus.model_validate_json(answer.content)


def print_table(found: list[PoolStatus]) -> None:
    if not found:
        Console().print("no pools: mount one with `sharedfs mount MOUNTPOINT`")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("POOL", "MOUNTPOINT", "DATA PATH"):
        table.add_column(heading)
    for heading in ("SIZE", "RESIDENT", "TENANTS", "FILES", "READS", "WRITES", "OTHER", "PID"):
        table.add_column(heading, justify="right")
    for pool in found:
        counts = dict(pool.requests)
        reads, writes = counts.pop("read"), counts.pop("write")
        table.add_row(
            pool.name,
            pool.mountpoint,
            pool.data_path,
            format_size(pool.size_bytes),
            format_size(pool.resident_bytes),
            str(pool.tenants),
            str(pool.files),
            str(reads),
            str(writes),
            str(sum(counts.values())),
            str(pool.daemon_pid),
        )
    console = Console()
    console.print(table)
    for pool in found:
        if "passthrough" not in pool.data_path:
            console.print(f"{pool.name}: {pool.mmap}")
