"""A live pool's trace: asks its feed for the tape four times a second, and writes what comes."""

from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from controller.api.client import ask
from controller.lab.events import NO_LIMIT, Event, Events
from controller.lab.trace_file import TraceWriter
from sharedfs.api import unix_client
from sharedfs.api.types import TAPE_COLUMNS, TapeRows
from sharedfs.api.unix_client import CONFLICT, NoAnswer, Response
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault

TAKE_SECONDS = 0.25
_ANSWER_SECONDS = 30.0  # the first answer has everything that is in the pool


def only_pool() -> str:
    """The name of the pool of this host, when there is one only. Raises CallerMistake."""
    names = sorted(socket.parent.name for socket in paths.pools_directory().glob(f"*/{paths.FEED_SOCKET}"))
    if len(names) == 1:
        return names[0]
    raise CallerMistake("there is no pool" if not names else f"say which pool with --pool: {', '.join(names)}")


def record(pool: str, path: Path, wait: Callable[[float], bool], progress: Callable[[int], None]) -> int:
    """Record `pool` until `wait(seconds)` says that it is enough; how many rows were written.

    Raises CallerMistake when there is no such pool or somebody records it, HostFault when the recording broke off: what
    was written by then can be read.
    """
    try:
        begun = _ask_for_tape(pool, "POST")
    except NoAnswer:
        raise CallerMistake(f"pool {pool} does not answer: see `sharedfs status`") from None
    if begun.status == CONFLICT:
        raise CallerMistake(begun.json()["detail"])
    if not begun.is_success:
        raise HostFault(f"pool {pool} answers {begun.status} {begun.reason}")
    try:
        with TraceWriter(path) as writer:
            _write(pool, writer, wait, progress)
            return writer.rows
    finally:
        with suppress(*NoAnswer):  # it is gone, and the tape with it
            _ask_for_tape(pool, "DELETE")


def _ask_for_tape(pool: str, method: str) -> Response:
    return unix_client.ask(paths.feed_socket(pool), method, "/v1/tape", timeout_seconds=_ANSWER_SECONDS)


def _take(pool: str) -> TapeRows:
    try:
        answer = _ask_for_tape(pool, "GET")
    except NoAnswer as error:
        raise HostFault(f"pool {pool} gave no more rows: {type(error).__name__}: {error}") from error
    if not answer.is_success:
        raise HostFault(f"pool {pool} gave no more rows: {answer.status} {answer.reason}")
    return TapeRows.model_validate_json(answer.content)


def _write(pool: str, writer: TraceWriter, wait: Callable[[float], bool], progress: Callable[[int], None]) -> None:
    files: dict[int, int] = {}
    enough = False
    while not enough:
        enough = wait(TAKE_SECONDS)
        told = _take(pool)
        events = as_events(told, files, _budgets() if told.tenants else {})
        if len(events):
            writer.write(events)
            progress(len(events))
        if told.full:
            raise HostFault("the tape was full before it could be taken: what is in the trace is complete until then")


def as_events(told: TapeRows, files: dict[int, int], budgets: dict[str, int]) -> Events:
    """Rows of a tape as a trace has them. `files` numbers inodes, and learns those that are new.

    A file is told of before anything that happens to it, a tenant's budget where it starts.
    """
    rows = np.frombuffer(b64decode(told.rows), np.int64).reshape(-1, len(TAPE_COLUMNS))
    time_us, event, tenant, inode, first, last, value = rows.T
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
