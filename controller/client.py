"""The controller's API from the other side of its socket."""

from collections.abc import Mapping
from typing import Any

from sharedfs import places, unix_client
from sharedfs.errors import CallerMistake, HostFault

NOT_RUNNING = "the controller is not running: start it with `sharedctl run`"
ANSWER_SECONDS = 15.0
"""A settlement that waits for a silent pool takes a second or two."""
CLAIM_SECONDS = 600.0
"""As many files as there are in a directory are handed over at once."""

Answer = dict[str, Any]


def ask(
    method: str,
    url: str,
    query: Mapping[str, str],
    body: Answer | None = None,
    *,
    timeout_seconds: float = ANSWER_SECONDS,
) -> Answer:
    """The controller's answer. Raises CallerMistake for what the caller can mend, HostFault for what it cannot."""
    for value in query.values():
        if not value.isprintable():
            raise CallerMistake(f"{value!r} is no text: name a cgroup as `sharedctl bills` shows it")
    path = places.controller_socket()
    try:
        response = unix_client.ask(path, method, url, query=query, body=body, timeout_seconds=timeout_seconds)
    except PermissionError:
        raise CallerMistake(f"{path}: permission denied: run as root") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise CallerMistake(NOT_RUNNING) from None
    except unix_client.NoAnswer as error:
        raise HostFault(f"the controller gave no answer: {type(error).__name__}: {error}") from error
    if response.content_type != "application/json":
        raise HostFault(f"the controller answers {response.status} {response.reason}: see its log")
    answer: Answer = response.json()
    if response.is_success:
        return answer
    if response.is_callers_mistake:
        raise CallerMistake(answer["detail"])
    raise HostFault(answer["detail"])
