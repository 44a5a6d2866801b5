"""Answers that take as long as there are files: blanks go ahead of the JSON while the controller works it out.

A client waits some seconds for the next byte, however many files there are. JSON may begin with blanks, so it reads
what comes as any other answer. A client that left is noticed at the next blank, and the work is given up.

An answer or a fault that is known before the first blank has its own status. After it the status is told already (200):
a fault comes as the `detail` that it would have been, in place of the answer.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from fastapi import Response
from pydantic import TypeAdapter
from starlette.types import Receive, Scope, Send

BLANK_SECONDS = 1.0
"""From one blank to the next: many of them in the time for which a client waits."""

_HEADERS = [(b"content-type", b"application/json")]

Told = TypeVar("Told")


class LongAnswer(Response, Generic[Told]):
    """The JSON of what `work` gives, which is a `kind`. `on_fault` says a fault of a known kind, and raises others."""

    def __init__(
        self, kind: type[Told], work: Callable[[], Awaitable[Told]], on_fault: Callable[[Exception], bytes]
    ) -> None:
        super().__init__()
        self._kind = kind
        self._work = work
        self._on_fault = on_fault
        self._done = trio.Event()
        self._body = b""
        self._fault: Exception | None = None

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Raises the fault while its status can be told, and what `send` raises of a client that left."""
        left: Exception | None = None
        has_begun = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work_out)
            while not await self._is_done_soon():
                try:
                    if not has_begun:
                        has_begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    await send({"type": "http.response.body", "body": b" ", "more_body": True})
                except (trio.BrokenResourceError, trio.TooSlowError) as error:
                    left = error
                    nursery.cancel_scope.cancel()
        if left is not None:
            raise left
        if self._fault is not None:
            if not has_begun:
                raise self._fault
            self._body = self._on_fault(self._fault)
        if not has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": self._body})

    async def _is_done_soon(self) -> bool:
        with trio.move_on_after(BLANK_SECONDS):
            await self._done.wait()
        return self._done.is_set()

    async def _work_out(self) -> None:
        try:
            told = await self._work()
            self._body = await trio.to_thread.run_sync(TypeAdapter(self._kind).dump_json, told)
        except Exception as fault:  # it is told where the answer would be
            self._fault = fault
        self._done.set()
