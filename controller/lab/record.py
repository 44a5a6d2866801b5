"""A live pool's trace: asks its feed for the tape four times a second, and writes what comes."""

from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from controller.client import ask
from controller.lab.events import NO_LIMIT, Event, Events
from controller.lab.trace import TraceWriter
from sharedfs import places
from sharedfs.errors import CallerMistake, HostFault
from sharedfs.feed_types import TapeRows

TAKE_SECONDS = 0.25
_ANSWER_SECONDS = 30.0  # the first answer has everything that is in the pool


def only_pool() -> str:
    """The name of the pool of this host, when there is one only. Raises CallerMistake."""
    names = sorted(socket.parent.name for socket in places.pools_directory().glob("*/feed.sock"))
    if len(names) == 1:
        return names[0]
    raise CallerMistake("there is no pool" if not names else f"say which pool with --pool: {', '.join(names)}")


def record(pool: str, path: Path, wait: Callable[[float], bool], progress: Callable[[int], None]) -> int:
    """Record `pool` until `wait(seconds)` says that it is enough; how many rows were written.

    Raises CallerMistake when there is no such pool or somebody records it, HostFault when the recording broke off: what
    was written by then can be read.
    """
    transport = httpx.HTTPTransport(uds=str(places.feed_socket(pool)))
    with httpx.Client(transport=transport, base_url="http://pool", timeout=_ANSWER_SECONDS) as feed:
        try:
            begun = feed.post("/v1/tape")
        except httpx.ConnectError:
            raise CallerMistake(f"pool {pool} does not answer: see `sharedfs status`") from None
        if begun.status_code == httpx.codes.CONFLICT:
            raise CallerMistake(begun.json()["detail"])
        begun.raise_for_status()
        try:
            with TraceWriter(path) as writer:
                _write(feed, writer, wait, progress)
                return writer.rows
        except httpx.HTTPError as error:
            raise HostFault(f"pool {pool} gave no more rows: {type(error).__name__}: {error}") from error
        finally:
            if not feed.is_closed:
                _end(feed)


def _write(
    feed: httpx.Client, writer: TraceWriter, wait: Callable[[float], bool], progress: Callable[[int], None]
) -> None:
    files: dict[int, int] = {}
    enough = False
    while not enough:
        enough = wait(TAKE_SECONDS)
        told = TapeRows.model_validate_json(feed.get("/v1/tape").raise_for_status().content)
        events = as_events(told, files, _budgets() if told.tenants else {})
        if len(events):
            writer.write(events)
            progress(len(events))
        if told.full:
            raise HostFault("the tape was full before it could be taken: what is in the trace is complete until then")


def _end(feed: httpx.Client) -> None:
    try:
        feed.delete("/v1/tape")
    except httpx.HTTPError:
        return  # it is gone, and the tape with it


def as_events(told: TapeRows, files: dict[int, int], budgets: dict[str, int]) -> Events:
    """Rows of a tape as a trace has them. `files` numbers inodes, and learns those that are new.

    A file is told of before anything that happens to it, a tenant's budget where it starts.
    """
    time_us, event, tenant, inode, first, last, value = np.frombuffer(b64decode(told.rows), np.int64).reshape(-1, 7).T
    of_pages = event < Event.START
    new = [number for number in dict.fromkeys(inode[of_pages].tolist()) if number not in files]
    for number in new:
        files[number] = len(files)
    numbers = np.array([files[number] if paged else 0 for number, paged in zip(inode.tolist(), of_pages, strict=True)])
    names = {place: told.files.get(number, "") for place, number in enumerate(new)}
    starts = np.flatnonzero(event == Event.START)
    value = value.copy()
    for row in starts.tolist():
        path = told.tenants[int(tenant[row])]
        names[len(new) + row] = path
        value[row] = budgets.get(path, NO_LIMIT)
    begin = np.full(len(new), time_us[0] if len(time_us) else 0)
    zeros = np.zeros(len(new), dtype=np.int64)
    return Events(
        np.concatenate((begin, time_us)),
        np.concatenate((np.full(len(new), Event.FILE), event)).astype(np.uint8),
        np.concatenate((zeros, tenant)).astype(np.int32),
        np.concatenate(([files[number] for number in new], numbers)).astype(np.int32),
        np.concatenate((zeros, first)),
        np.concatenate((zeros, last)),
        np.concatenate((zeros, value)),
        names,
    )


def _budgets() -> dict[str, int]:
    """The tenants' budgets, if a controller runs that knows them."""
    try:
        bills = ask("GET", "/v1/bills", {})
    except (CallerMistake, HostFault):
        return {}
    return {line["tenant"]: line["budget_bytes"] for line in bills["tenants"] if line["budget_bytes"] is not None}
