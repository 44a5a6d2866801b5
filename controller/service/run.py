"""`sharedctl run`: one controller for a run directory, from its lock to the limits put back."""

import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import trio

from controller.limits.factory import kernel_limits
from controller.limits.marks import Marks
from controller.limits.types import KernelLimits
from controller.persistence.database import DamagedDatabase, check_room
from controller.persistence.history import DATABASE as HISTORY
from controller.persistence.history import History
from controller.persistence.state import State, entries_of, look_up_policy
from controller.policies.registry import policy_to_settle
from controller.service.config import Config
from controller.service.controller import Controller
from controller.service.guarding import end_earlier_guard
from controller.service.host_lock import host_lock
from controller.service.http_api import make_api
from controller.service.ordered_policy import ordered_policy
from controller.service.restore import restore
from sharedfs.api.unix_listener import check_replaceable
from sharedfs.api.unix_server import serve_at
from sharedfs.common import paths
from sharedfs.common.errors import CallerMistake, HostFault, first_error
from sharedfs.common.trusted_paths import check_no_links, check_trusted, open_trusted
from sharedfs.linux.cgroups import MemoryHierarchy, find_memory_hierarchy
from sharedfs.linux.service_manager import ServiceManager

log = logging.getLogger(__name__)

_MOVE_AWAY = "the controller follows and replaces nothing there; move it away"


@contextmanager
def only_controller(hierarchy: MemoryHierarchy, *, dry_run: bool = False) -> Iterator[None]:
    """Held by the one controller of this host, run directory and journal, when no guard of an earlier one is left.

    Raises CallerMistake when another controller holds it, or when others than root can change these directories. One
    that writes no limits (`dry_run`) may run beside others.
    """
    run_directory, state_directory = paths.run_directory(), paths.state_directory()
    with ExitStack() as locks:
        for directory, mode in ((run_directory, 0o755), (state_directory, 0o700)):
            os.close(open_trusted(directory, paths.KEEP_TO_ROOT, make_mode=mode, sticky_is_fine=False))
        check_trusted(paths.pools_directory(), paths.KEEP_TO_ROOT)
        _check_files()
        for path in (run_directory / "controller.lock", paths.controller_lock()):
            lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            locks.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CallerMistake(f"a controller already runs for {path.parent}: stop it first") from None
        end_earlier_guard(paths.guard_lock())
        if not dry_run:
            locks.enter_context(host_lock(paths.host_lock(hierarchy.mount)))
        yield


def _check_files() -> None:
    """Raises CallerMistake when a link, or what is no file, is where the controller has its files."""
    databases = [name + suffix for name in (paths.CONTROLLER_DATABASE, HISTORY) for suffix in ("", "-wal", "-shm")]
    names = [paths.controller_lock().name, paths.guard_lock().name, *databases]
    check_no_links(paths.run_directory(), ["controller.lock"], _MOVE_AWAY)
    check_no_links(paths.state_directory(), names, _MOVE_AWAY)


def run(config: Config, *, dry_run: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then put all limits back. Raises HostFault when some are not."""
    hierarchy = find_memory_hierarchy()
    with only_controller(hierarchy, dry_run=dry_run), kernel_limits(hierarchy) as limits:
        check_replaceable(paths.controller_socket())
        state = State(paths.state_directory(), hierarchy=limits.hierarchy)
        history = History(paths.state_directory())
        try:
            trio.run(partial(_serve, config, limits, state, history, dry_run=dry_run))
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            history.close()
            state.close()


def check(config: Config) -> str:
    """What a controller with this configuration would go by, in a line. Raises what would keep it from starting.

    Changes nothing, whether a controller runs or not.
    """
    hierarchy = find_memory_hierarchy()
    policy_to_settle(config.policy, None)
    for directory in (paths.run_directory(), paths.state_directory()):
        check_trusted(directory, paths.KEEP_TO_ROOT)
    _check_files()
    check_replaceable(paths.controller_socket())
    database = paths.state_directory() / paths.CONTROLLER_DATABASE
    check_room(database.parent)
    ordered_policy(look_up_policy(database), config.policy, hierarchy, database)
    return f"ok: policy {config.policy}, memory cgroups at {hierarchy.mount}, state in {paths.state_directory()}"


def restore_limits() -> int:
    """Put back what a controller that died for good left lowered; how many cgroups that were.

    Of a journal that is damaged what cgroups still tell of is put back. Raises HostFault when some are not back, and
    then DamagedDatabase.
    """
    hierarchy = find_memory_hierarchy()
    with only_controller(hierarchy), kernel_limits(hierarchy) as limits:
        try:
            state = State(paths.state_directory(), hierarchy=limits.hierarchy)
        except DamagedDatabase as damaged:
            marks = Marks(limits.hierarchy, paths.state_directory() / paths.CONTROLLER_DATABASE)
            entries = entries_of(marks.found()).values()
            _raise_faults(restore(limits, marks.remove, entries))
            raise DamagedDatabase(f"limits put back by the marks on cgroups: {len(entries)}; but {damaged}") from None
        try:
            entries = state.journal().values()
            _raise_faults(restore(limits, state.forget, entries))
            return len(entries)
        finally:
            state.close()


async def _serve(config: Config, limits: KernelLimits, state: State, history: History, *, dry_run: bool) -> None:
    path = paths.controller_socket()
    # Writes outlive the tasks that ordered them: what is put back must not be undone by a write that lands later.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as writes:
            controller = Controller(config, limits, state, history, paths.pools_directory(), writes, dry_run=dry_run)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(controller.settling.keep_settling, name="settle")
                    nursery.start_soon(controller.settling.guarding.wait_for_death, name="mind the guard")
                    await nursery.start(serve_at, make_api(controller), path, name="serve the API")
                    log.info("serving %s", path)
                    ServiceManager().tell(f"READY=1\nSTATUS=Serving {path}")
                    async for number in signals:
                        log.info("%s: putting limits back", signal.Signals(number).name)
                        break
                    nursery.cancel_scope.cancel()
            finally:
                faults = await controller.settling.put_back()
                writes.cancel_scope.cancel()
    _raise_faults(faults)


def _raise_faults(faults: list[str]) -> None:
    if faults:
        raise HostFault(f"{len(faults)} limits are not back, `sharedctl restore` tries again: {'; '.join(faults)}")
