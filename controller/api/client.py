"""The controller's API from the other side of its socket."""

import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sharedfs.api import unix_client
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.common.names import printable
from sharedfs.linux.cgroups import readable

NOT_RUNNING = "the controller is not running: start it with `sharedctl run`"
ANSWER_SECONDS = 15.0
"""Until the next part of an answer. A settlement that waits for a silent pool takes a second or two."""
CLAIM_SECONDS = 600.0
"""As many files as there are in a directory are handed over at once."""

_CGROUPS = ("tenant", "payer")

Answer = dict[str, Any]
"""As JSON has it; `read` makes a type of it."""

Told = TypeVar("Told")


def ask(
    method: str,
    url: str,
    query: Mapping[str, str],
    body: Answer | None = None,
    *,
    timeout_seconds: float = ANSWER_SECONDS,
) -> Answer:
    """The controller's answer. Raises CallerMistake for what the caller can mend, HostFault for what it cannot."""
    query = _as_text(query)
    path = paths.controller_socket()
    try:
        response = unix_client.ask(path, method, url, query=query, body=body, timeout_seconds=timeout_seconds)
    except PermissionError:
        raise CallerMistake(f"{path}: permission denied: run as root") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise CallerMistake(NOT_RUNNING) from None
    except TimeoutError:
        raise HostFault(
            f"the controller gave no answer within {timeout_seconds:.0f} s: `sharedctl status` tells of pools that are "
            "late, and its log of itself"
        ) from None
    except unix_client.NoAnswer as error:
        raise HostFault(f"the controller gave no answer: {type(error).__name__}: {error}") from error
    if response.content_type != "application/json":
        raise HostFault(f"the controller answers {response.status} {response.reason}: see its log")
    answer: Answer = response.json()
    if response.is_success:
        if "detail" in answer:  # a fault that came when the answer had begun
            raise HostFault(answer["detail"])
        return answer
    if response.is_callers_mistake:
        raise CallerMistake(answer["detail"])
    raise HostFault(answer["detail"])


def _as_text(query: Mapping[str, str]) -> dict[str, str]:
    """A query that can be sent: a name that is no text goes with escapes, as answers show it."""
    told = {}
    for key, value in query.items():
        if key in _CGROUPS:
            told[key] = cgroup_text(value)
        elif value.isprintable():
            told[key] = value
        else:
            told |= {key: printable(os.fsencode(value)), "escaped": "true"}
    return told


def cgroup_text(name: str) -> str:
    """The name of a cgroup as bills have it; it may also come with the bytes of its directory."""
    if not name:
        raise CallerMistake("the tenant is empty: name a cgroup as `sharedctl bills` shows it")
    return name if name.isprintable() else readable(os.fsencode(name))


def read(kind: type[Told], answer: Any) -> Told:
    """`answer` as a type of `controller.api.types`. What the type does not have is left out.

    Raises HostFault when something is missing: the controller is of another version.
    """
    try:
        told: Told = _read(kind, answer)
    except TypeError as missing:
        raise HostFault(f"the controller is of another version, restart it: {missing}") from missing
    return told


def _read(kind: Any, told: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _read(hints[name], value) for name, value in told.items() if name in hints})
    match get_origin(kind):
        case origin if origin is tuple:
            item = get_args(kind)[0]
            return tuple(_read(item, part) for part in told)
        case origin if origin is dict:
            item = get_args(kind)[1]
            return {key: _read(item, part) for key, part in told.items()}
        case origin if origin is UnionType and told is not None:
            (other,) = (part for part in get_args(kind) if part is not NoneType)
            return _read(other, told)
    return told


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
