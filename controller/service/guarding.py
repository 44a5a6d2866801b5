"""The controller's side of the guard (`controller/service/guard.py`): starts it, tells it what to watch, and ends it.

The guard runs while there is something to watch. Each order is answered, so the controller knows which values the guard
may still write: those of its last answered order, and those of an order that is under way. Both are in the journal.
A guard that does not answer in time is killed and another one is started; a dead one leaves limits as they are.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from controller.limits import v1, v2
from controller.limits.types import KernelLimits
from controller.service import guard
from controller.settlement.watching import Watch
from sharedfs.common import paths
from sharedfs.common.errors import BrokenInvariant, HostFault
from sharedfs.linux.cgroups import CgroupRef, CgroupVersion

log = logging.getLogger(__name__)

LONGEST_SILENCE_SECONDS = 60.0
"""So long the guard goes on while the controller says nothing; then it raises all that it watches."""
_ANSWER_SECONDS = 5.0
_END_SECONDS = 5.0


class Guarding:
    """`died` is called when the guard has ended without being told to. One order at a time."""

    def __init__(self, limits: KernelLimits, interval_seconds: float, died: Callable[[], None]) -> None:
        self.works = True
        """False from a failure until a guard runs again: meanwhile nothing may be lowered that has to yield."""
        self.raised = 0
        """Limits that the guard raised, since the start."""
        self.unconfirmed: set[CgroupRef] = set()
        """Those of them that a manager may not know of yet."""
        self.watches: dict[CgroupRef, Watch] = {}
        self._limits = limits
        self._patience_seconds = max(LONGEST_SILENCE_SECONDS, 10 * interval_seconds)
        self._died = died
        self._process: trio.Process | None = None
        self._started = trio.Event()
        self._turn = trio.Lock()

    async def update(self, watches: Iterable[Watch], dropped: Iterable[CgroupRef] = ()) -> bool:
        """Watch these, in place of what was watched of the same cgroups, and those `dropped` no more.

        False when there is no guard that does it.
        """
        async with self._turn:
            old = [cgroup for cgroup in dropped if cgroup in self.watches]
            wanted = {cgroup: watch for cgroup, watch in self.watches.items() if cgroup not in old}
            wanted |= {watch.cgroup: watch for watch in watches}
            armed = self.watches
            if self._process is None:
                armed = self.watches = {}
                if not wanted:
                    self.works = True
                    return True
                self.works = await self._start()
            new = [watch for watch in wanted.values() if not _covers(armed.get(watch.cgroup), watch)]
            order: guard.Order = {
                "watch": [self._entry(watch) for watch in new],
                "drop": [_key(cgroup) for cgroup in old],
            }
            self.watches = wanted
            self.works = self.works and await self._ask(order)
            return self.works

    async def look(self, cgroup: CgroupRef) -> None:
        """The limits of `cgroup` were written: is its tenant near them already?"""
        async with self._turn:
            if self._process is not None and cgroup in self.watches:
                self.works = await self._ask({"look": [_key(cgroup)]})

    async def stop(self) -> None:
        """End the guard and leave limits as they are."""
        async with self._turn:
            if self._process is not None:
                await self._ask({"quit": True})
                await self._end()
            self.watches.clear()

    async def wait_for_death(self) -> None:
        """A task: tells when the guard has died. Runs until it is cancelled."""
        while True:
            process = self._process
            if process is None:
                await self._started.wait()
                continue
            code = await process.wait()
            async with self._turn:
                if self._process is process:
                    log.warning("the guard of limits ended with %d: another one is started", code)
                    await self._end()
                    self._died()

    async def _start(self) -> bool:
        lock = paths.guard_lock()
        host_lock = paths.host_lock(self._limits.hierarchy.mount)
        command = [sys.executable, "-I", "-S", guard.__file__, str(lock), str(host_lock), str(self._patience_seconds)]
        start = partial(trio.lowlevel.open_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        try:
            self._process = await start(start_new_session=True)
        except OSError as error:
            log.warning("the guard of limits cannot be started: %s", error.strerror)
            return False
        self._started.set()
        self._started = trio.Event()
        return await self._ask(None)

    async def _ask(self, order: guard.Order | None) -> bool:
        """None waits for its first word. Whoever does not answer is ended."""
        process, received = self._process, b""
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with trio.fail_after(_ANSWER_SECONDS, shield=True):  # or its answer would be taken for the next one
                if order is not None:
                    await process.stdin.send_all(json.dumps(order).encode() + b"\n")
                while not received.endswith(b"\n"):
                    part = await process.stdout.receive_some()
                    received += part
                    if not part:
                        break
        except (trio.TooSlowError, trio.BrokenResourceError):
            received = b""
        if not received.endswith(b"\n"):
            log.warning("the guard of limits does not answer: another one is started")
            await self._end()
            return False
        keys = set(json.loads(received)["raised"])
        raised = {cgroup for cgroup in self.watches if _key(cgroup) in keys}
        self.raised += len(raised)
        self.unconfirmed |= raised
        for cgroup in raised:
            del self.watches[cgroup]
        return True

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        await process.stdout.aclose()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_END_SECONDS):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()

    def _entry(self, watch: Watch) -> guard.Entry:
        is_v1 = self._limits.hierarchy.version is CgroupVersion.V1
        maxima = [limits.max_bytes for limits in watch.lowered]
        files: list[guard.File]
        if is_v1:
            files = [(v1.LIMIT, list(maxima), watch.raised.max_bytes)]
        else:
            highs = [limits.high_bytes for limits in watch.lowered]
            files = [
                (v2.MAX, list(maxima), watch.raised.max_bytes),
                (v2.HIGH, highs, watch.raised.high_bytes),
            ]
        limit_bytes = watch.lowered[0].enforced_bytes
        if limit_bytes is None:
            raise BrokenInvariant(f"nothing yields where there is no limit: {watch}")
        cgroup = self._limits.hierarchy.now(watch.cgroup) or watch.cgroup
        return {
            "key": _key(cgroup),
            "directory": str(self._limits.hierarchy.directory(cgroup.path)),
            "inode": cgroup.inode,
            "v1": is_v1,
            "threshold": watch.threshold_bytes,
            "limit": limit_bytes,
            "files": files,
        }


def _key(cgroup: CgroupRef) -> str:
    return str(cgroup.inode)


def _covers(armed: Watch | None, watch: Watch) -> bool:
    """Whether the guard does as `watch` says already."""
    return (
        armed is not None
        and (armed.threshold_bytes, armed.raised) == (watch.threshold_bytes, watch.raised)
        and set(watch.lowered) <= set(armed.lowered)
    )


def end_earlier_guard(lock: Path) -> None:
    """Wait until the guard of an earlier controller has put inherited parts back and ended; it has seen its end.

    One that does not end (it is stopped) is killed. Raises HostFault when that does not help, or when what has the
    lock is no guard. Blocks.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for patience_seconds in (_END_SECONDS, _END_SECONDS):
            deadline = time.monotonic() + patience_seconds
            while time.monotonic() < deadline:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(0.02)
            _kill_guard(lock, os.pread(descriptor, 20, 0).strip())
        raise HostFault(f"{lock}: the guard of an earlier controller does not end: kill it")
    finally:
        os.close(descriptor)


def _kill_guard(lock: Path, process_id: bytes) -> None:
    """Kill the process whose id is in the lock. Raises HostFault unless it is a guard of this user's."""
    process = None
    try:
        if process_id.isdigit():
            process = os.pidfd_open(int(process_id))  # from here on the id is no other process's
            found = Path(f"/proc/{int(process_id)}")
            arguments = (found / "cmdline").read_bytes().split(b"\0")
            name = os.fsencode(Path(guard.__file__).name)
            if found.stat().st_uid == os.geteuid() and any(os.path.basename(word) == name for word in arguments[1:5]):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        pass  # gone
    finally:
        if process is not None:
            os.close(process)
    raise HostFault(f"{lock} is locked by a process that is no guard of limits: `fuser -v {lock}` names it, end it")
