"""The controller's API from the other side of its socket."""

import errno
from collections.abc import Mapping
from typing import Any

import httpx

from sharedfs import places
from sharedfs.errors import CallerMistake, HostFault

NOT_RUNNING = "the controller is not running: start it with `sharedctl run`"
ANSWER_SECONDS = 15.0
"""A settlement that waits for a silent pool takes a second or two."""

Answer = dict[str, Any]


def ask(method: str, url: str, query: Mapping[str, str], body: Answer | None = None) -> Answer:
    """The controller's answer. Raises CallerMistake for what the caller can mend, HostFault for what it cannot."""
    for value in query.values():
        if not value.isprintable():
            raise CallerMistake(f"{value!r} is no text: name a cgroup as `sharedctl bills` shows it")
    transport = httpx.HTTPTransport(uds=str(places.controller_socket()))
    try:
        with httpx.Client(transport=transport, base_url="http://controller", timeout=ANSWER_SECONDS) as client:
            response = client.request(method, url, params=query, json=body)
    except httpx.ConnectError as error:
        if _errno(error) in (errno.EACCES, errno.EPERM):
            raise CallerMistake(f"{places.controller_socket()}: permission denied: run as root") from None
        raise CallerMistake(NOT_RUNNING) from None
    except httpx.HTTPError as error:
        raise HostFault(f"the controller gave no answer: {type(error).__name__}: {error}") from error
    if response.headers.get("content-type") != "application/json":
        raise HostFault(f"the controller answers {response.status_code} {response.reason_phrase}: see its log")
    answer: Answer = response.json()
    if response.is_success:
        return answer
    if response.is_client_error:
        raise CallerMistake(answer["detail"])
    raise HostFault(answer["detail"])


def _errno(error: BaseException | None) -> int | None:
    """The system's error number below httpx's own errors, None when there is none."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None
