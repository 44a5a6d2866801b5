"""HTTP/1.1 on a Unix socket: an ASGI application behind h11, with a bound for everything that a client can do.

No server from the shelf that runs in trio bounds what we need bounded (see docs/decisions.md). Who sends nonsense, too
much or too slowly is told so and dropped; so is who does not take its answer; nobody keeps the service from stopping.

Only root is answered. The socket's mode keeps others from connecting; who connects all the same is looked at.
"""

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import h11
import trio

from sharedfs.api.types import BODY_BYTES
from sharedfs.api.unix_listener import BACKLOG

log = logging.getLogger(__name__)

CONNECTIONS = 64
_HEADER_BYTES = 16 << 10
REQUEST_SECONDS = 5.0  # from the connection, or the last answer, until a whole request is there
ANSWER_SECONDS = 10.0  # until a part of an answer, a socket's buffer at least, is taken
_TOO_SLOW = f"a request takes no longer than {REQUEST_SECONDS:.0f} seconds"
_UCRED = struct.Struct("iII")  # pid, uid, gid

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class _Refused(Exception):
    """The request is not for the application: the status says why."""

    def __init__(self, status: int, why: str) -> None:
        self.status = status
        self.why = why


async def serve_http(
    app: Application, listener: socket.socket, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `app` on a bound socket, which becomes ours, until cancelled; started once clients are answered."""
    listener.listen(BACKLOG)
    open_connections = 0

    async def serve_connection(stream: trio.SocketStream) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            await _Connection(app, stream).serve(full=open_connections > CONNECTIONS)
        finally:
            open_connections -= 1

    async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as listening:
        await trio.serve_listeners(serve_connection, [listening], task_status=task_status)


class _Connection:
    def __init__(self, app: Application, stream: trio.SocketStream) -> None:
        self._app = app
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADER_BYTES)

    async def serve(self, *, full: bool) -> None:
        """Answer requests until the client or one of its mistakes ends that. Raises nothing but cancellation."""
        try:
            if not self._is_root():
                raise _Refused(403, "only root may ask")  # noqa: TRY301 - all refusals go one way
            if full:
                raise _Refused(503, f"{CONNECTIONS} connections are open already")  # noqa: TRY301
            while await self._serve_request():
                self._http.start_next_cycle()
        except _Refused as refused:
            await self._refuse(refused.status, refused.why)
        except h11.RemoteProtocolError as mistake:
            await self._refuse(mistake.error_status_hint, str(mistake))
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # gone, or does not take its answer
        except Exception:
            log.exception("a request broke the service's answer")
        finally:
            await trio.aclose_forcefully(self._stream)

    def _is_root(self) -> bool:
        _, uid, _ = _UCRED.unpack(self._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return uid in (0, os.geteuid())

    async def _serve_request(self) -> bool:
        """Answer one request; whether the connection may bring another one."""
        request: object = None
        body = None
        with trio.move_on_after(REQUEST_SECONDS):
            request = await self._event()
            if isinstance(request, h11.Request):
                body = await self._body()
        if not isinstance(request, h11.Request):
            if request is None and self._http.trailing_data[0]:
                raise _Refused(408, _TOO_SLOW)
            return False  # closed, or idle for too long
        if body is None:
            raise _Refused(408, _TOO_SLOW)
        await self._answer(request, body)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _event(self) -> object:
        """The next part of what the client says. Raises h11.RemoteProtocolError."""
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._stream.receive_some())

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(part := await self._event(), h11.Data):
            body += part.data
            if len(body) > BODY_BYTES:
                raise _Refused(413, f"a body has no more than {BODY_BYTES} bytes")
        return bytes(body)

    async def _answer(self, request: h11.Request, body: bytes) -> None:
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers],
            "client": None,
            "server": None,
        }
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not asked:
                await trio.sleep_forever()
            return asked.pop()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._send(h11.Response(status_code=message["status"], headers=list(message["headers"])))
                return
            if message.get("body") and request.method != b"HEAD":
                await self._send(h11.Data(data=message["body"]))
            if not message.get("more_body"):
                await self._send(h11.EndOfMessage())

        await self._app(scope, receive, send)

    async def _refuse(self, status: int, why: str) -> None:
        """Say why and be done with this client, if it can still be told."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        text = f"{why}\n".encode()
        headers = [("content-type", "text/plain"), ("content-length", str(len(text))), ("connection", "close")]
        try:
            await self._send(h11.Response(status_code=status, headers=headers))
            await self._send(h11.Data(data=text))
            await self._send(h11.EndOfMessage())
        except (trio.BrokenResourceError, trio.TooSlowError, h11.LocalProtocolError):
            pass

    async def _send(self, event: h11.Event) -> None:
        told = self._http.send(event)
        if told:
            with trio.fail_after(ANSWER_SECONDS):
                await self._stream.send_all(told)
