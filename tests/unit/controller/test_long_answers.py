"""An answer that takes as long as there are files reaches a client that waits so long for the next byte only."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from fastapi import FastAPI, Response

from controller.api import client
from controller.service import long_answers
from controller.service.http_api import make_api
from controller.service.long_answers import LongAnswer
from sharedfs.api.unix_server import serve_at
from sharedfs.common import paths
from sharedfs.common.errors import BrokenInvariant, CallerMistake, HostFault

pytestmark = pytest.mark.trio

PATIENCE_SECONDS, SHORT_SECONDS = 10.0, 1.0  # of a client, on a busy host and where it is to be short
LONG_SECONDS = 2.5


@dataclass(frozen=True)
class Said:
    word: str


class Asked:
    """The controller that an API asks: `explain` takes long and does as it is told."""

    def __init__(self, seconds: float, fault: Exception | None = None) -> None:
        self._seconds = seconds
        self._fault = fault
        self.settling = self
        self.broken: BrokenInvariant | None = None
        self.given_up = trio.Event()

    def stop_broken(self, broken: BrokenInvariant) -> None:
        self.broken = broken

    async def explain(self, _tenant: str, _files: int) -> Said:
        try:
            await trio.sleep(self._seconds)
        except trio.Cancelled:
            self.given_up.set()
            raise
        if self._fault is not None:
            raise self._fault
        return Said("now")


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_at, app, paths.controller_socket())
        yield
        nursery.cancel_scope.cancel()


async def ask(timeout_seconds: float = PATIENCE_SECONDS) -> client.Answer:
    query = {"tenant": "/a"}
    return await trio.to_thread.run_sync(
        partial(client.ask, "GET", "/v1/explain", query, timeout_seconds=timeout_seconds), abandon_on_cancel=True
    )


@pytest.fixture(autouse=True)
def _places(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "BLANK_SECONDS", 0.1)
    paths.controller_socket().parent.mkdir(parents=True, exist_ok=True)


def api(asked: Asked, patch: pytest.MonkeyPatch) -> FastAPI:
    """The controller's own API, but for the type of the answer."""
    patch.setattr("controller.service.http_api.Explanation", Said)
    return make_api(asked)  # type: ignore[arg-type]


async def test_an_answer_that_takes_longer_than_the_client_waits_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(api(Asked(LONG_SECONDS), monkeypatch)):
        assert await ask(SHORT_SECONDS) == {"word": "now"}


async def test_without_blanks_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    monkeypatch.setattr(long_answers, "BLANK_SECONDS", 60.0)
    async with served(api(Asked(LONG_SECONDS), monkeypatch)):
        with pytest.raises(HostFault, match="the controller gave no answer within"):
            await ask(SHORT_SECONDS)


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["at once", "after blanks"])
async def test_a_fault_is_told_in_the_same_words_sooner_or_later(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(api(Asked(seconds, HostFault("pool p does not answer")), monkeypatch)):
        with pytest.raises(HostFault, match=r"^pool p does not answer$"):
            await ask()


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["at once", "after blanks"])
async def test_a_broken_invariant_stops_the_controller_sooner_or_later(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(seconds, BrokenInvariant("I1"))
    async with served(api(asked, monkeypatch)):
        with pytest.raises(HostFault, match="the controller stops: I1"):
            await ask()
    assert asked.broken is not None


async def test_a_mistake_that_is_known_at_once_has_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(api(Asked(0.0, CallerMistake("no such tenant")), monkeypatch)):
        with pytest.raises(CallerMistake, match="no such tenant"):
            await ask()


async def test_an_error_that_nobody_foresaw_ends_the_answer_and_not_the_service(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(api(Asked(0.5, ZeroDivisionError()), monkeypatch)):
        with pytest.raises(HostFault, match="gave no answer"):
            await ask()
        assert "a request broke the service's answer" in caplog.text


async def test_a_client_that_left_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(3600)
    async with served(api(asked, monkeypatch)):
        stream = await trio.open_unix_socket(str(paths.controller_socket()))
        await stream.send_all(b"GET /v1/explain?tenant=/a HTTP/1.1\r\nHost: x\r\n\r\n")
        head = b""
        while b"\r\n\r\n1\r\n \r\n" not in head:
            head += await stream.receive_some()
        assert head.startswith(b"HTTP/1.1 200")
        await stream.aclose()
        with trio.fail_after(10):
            await asked.given_up.wait()


async def test_a_short_answer_has_no_blanks() -> None:
    messages = []

    async def send(message: dict[str, object]) -> None:
        messages.append(message)

    async def work() -> Said:
        return Said("now")

    def never(_: Exception) -> bytes:
        raise AssertionError

    answer: Response = LongAnswer(Said, work, never)
    await answer({}, trio.sleep_forever, send)  # type: ignore[arg-type]
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert json.loads(messages[1]["body"]) == {"word": "now"}  # type: ignore[call-overload]
