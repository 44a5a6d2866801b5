"""`sharedfs status`: what each pool says of itself on its feed."""

import httpx

from sharedfs import places, pools
from sharedfs.feed_types import PoolRecord, PoolStatus
from sharedfs.mounting import require_root
from sharedfs.tables import print_table, say
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


def show(found: list[PoolStatus]) -> None:
    if not found:
        say("no pools: mount one with `sharedfs mount MOUNTPOINT`")
        return
    rows = []
    for pool in found:
        others = sum(count for kind, count in pool.requests.items() if kind not in ("read", "write"))
        counts = (pool.tenants, pool.files, pool.requests["read"], pool.requests["write"], others, pool.daemon_pid)
        sizes = (pool.size_bytes, pool.resident_bytes)
        rows.append(
            (pool.name, pool.mountpoint, pool.flags, pool.data_path, *map(format_size, sizes), *map(str, counts))
        )
    heads = (
        "POOL",
        "MOUNTPOINT",
        "FLAGS",
        "DATA PATH",
        "SIZE",
        "RESIDENT",
        "TENANTS",
        "FILES",
        "READS",
        "WRITES",
        "OTHER",
        "PID",
    )
    print_table(heads, rows, texts=4)
    for pool in found:
        if "passthrough" not in pool.data_path:
            say(f"{pool.name}: {pool.mmap}")
