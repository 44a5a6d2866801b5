"""`sharedctl run`: one controller for a run directory, from its lock to the limits put back."""

import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.trio import serve

from controller.api import make_api
from controller.billing.policies import Policy
from controller.billing.policies.proportional import Proportional
from controller.config import Config
from controller.limits import kernel_limits
from controller.limits.base import KernelLimits
from controller.limits.restore import restore
from controller.service import Controller
from controller.state import State
from sharedfs import places
from sharedfs.errors import CallerMistake, HostFault
from sharedfs.kernel.cgroups import find_memory_hierarchy

log = logging.getLogger(__name__)

POLICIES: dict[str, Callable[[], Policy]] = {"proportional": Proportional}


@contextmanager
def only_controller() -> Iterator[None]:
    """Held by the one controller of this run directory. Raises CallerMistake when another holds it."""
    directory = places.run_directory()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "controller.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CallerMistake(f"a controller already runs for {directory}: stop it first") from None
        yield


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then put all limits back. Raises HostFault when some are not."""
    limits = kernel_limits(find_memory_hierarchy(), config.floor_bytes)
    with only_controller():
        state = State(places.state_directory())
        try:
            trio.run(_serve, config, limits, state)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            state.close()


def restore_limits() -> int:
    """Put back what a controller that died for good left lowered; how many cgroups that were. Raises HostFault."""
    limits = kernel_limits(find_memory_hierarchy(), Config().floor_bytes)
    with only_controller():
        state = State(places.state_directory())
        try:
            entries = state.journal().values()
            _raise_faults(restore(limits, state, entries))
            return len(entries)
        finally:
            state.close()


async def _serve(config: Config, limits: KernelLimits, state: State) -> None:
    path = places.controller_socket()
    # Writes outlive the tasks that ordered them: what is put back must not be undone by a write that lands later.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as writes:
            policy = POLICIES[config.policy]()
            controller = Controller(config, policy, limits, state, places.pools_directory(), writes)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(controller.keep_settling, name="settle")
                    await nursery.start(serve, make_api(controller), _server(path), name="serve the API")
                    log.info("serving %s", path)
                    async for number in signals:
                        log.info("%s: putting limits back", signal.Signals(number).name)
                        break
                    nursery.cancel_scope.cancel()
            finally:
                path.unlink(missing_ok=True)
                faults = await controller.put_back()
                writes.cancel_scope.cancel()
    _raise_faults(faults)


def _server(path: Path) -> ServerConfig:
    server = ServerConfig()
    server.bind = [f"fd://{_listen(path)}"]
    server.accesslog = None
    server.loglevel = "WARNING"
    return server


def _listen(path: Path) -> int:
    """The descriptor of a socket at `path` that only we can reach, in place of whatever was there.

    It is bound beside its name and nobody listens until its mode is set and it is renamed: there is no instant at
    which it is open to others, and the umask, which all threads share, is left alone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(beside))
    beside.chmod(0o600)
    beside.rename(path)
    return listener.detach()


def _raise_faults(faults: list[str]) -> None:
    if faults:
        raise HostFault(f"{len(faults)} limits are not back, `sharedctl restore` tries again: {'; '.join(faults)}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person is to read: nurseries wrap it, and what fell over after it adds nothing."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
