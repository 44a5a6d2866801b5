"""Looks at processes for all who have to: one child process looks, and who is stuck is remembered.

A process that is stuck is left alone for a second, and after each look that does not end for twice as long, up to a
minute. What others map is seen first: processes that were seen the last time, then new ones, then those of a cgroup
with a process that is stuck, and last what is looked at again. So a tenant with ever more stuck processes delays what
is seen of its own.

A process with very many mappings takes long to look at. In one scan the processes of a cgroup have a second; what is
left of them is put off, and has the first turn of that cgroup in the next scan, after the other cgroups.

A look that does not end changes nothing: `Unseen` says what was known of the process.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sharedfs.accounting.books import Books
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux import procfs
from sharedfs.linux.looker import PUT_OFF, SLOW, STUCK, Looker, is_unseen, one_round
from sharedfs.pages.look_messages import answer, ask_mapped, ask_parts, parts_of, sight_of
from sharedfs.pages.page_tables import Device, Parts, PartsSight, Sight

log = logging.getLogger("sharedfs")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_AGAIN_AT_ONCE = 8
_MOST_SHOWN = 20
MOST_OF_A_CGROUP_SECONDS = 1.0
"""So long a scan looks at the processes of one cgroup."""


class NotLookedAt(OSError):
    """A process cannot be looked at now, so nothing is known of what it maps."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a process was when it was last seen: whose, and which files it mapped."""

    identity: int
    tenant: TenantId
    inodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Unseen:
    """A process that was not looked at, the cgroup that it is in, and what it was; None when it never was seen.

    `is_late`: it only waits for its turn.
    """

    process_id: int
    identity: int
    cgroup: bytes
    known: Known | None
    is_late: bool


@dataclass(frozen=True, slots=True)
class _Stuck:
    identity: int
    cgroup: bytes
    pause_seconds: float
    until: float


class ProcessLooks:
    """At the processes of a host, for one pool whose mount is known by its `device`. Safe from any thread.

    What is looked at may wait for the daemon: not with a lock, and not while requests wait.
    """

    def __init__(self, books: Books, device: Device) -> None:
        self._books = books
        self._device = device
        self._looker = Looker(answer)
        self._lock = threading.Lock()
        self._stuck: dict[int, _Stuck] = {}
        self._known: dict[int, Known] = {}
        self._seen: set[int] = set()
        self._scans = 0
        self._last_scans: dict[int, int] = {}
        """Which scan looked at a process last."""
        self._slow: frozenset[bytes] = frozenset()
        """Cgroups with processes that the last scan put off."""
        self._told_slow: set[bytes] = set()
        self._began = procfs.identity(os.getpid()) or 0
        self.unseen: tuple[Unseen, ...] = ()
        """Of the last look at all."""

    def close(self) -> None:
        """No look ends from here on. One that another thread waits for is not waited for."""
        self._looker.end()
        if self._lock.acquire(blocking=False):
            try:
                self._looker.close()
            finally:
                self._lock.release()

    def all(self, *, pages: bool, opened: bool = False) -> tuple[list[tuple[Sight, TenantId]], tuple[Unseen, ...]]:
        """The processes that map anything of the mount and whose they are, and those that cannot be looked at.

        With `opened` also those that have a file of it open for reading only.
        """
        with self._lock:
            ids = list(procfs.process_ids())
            order = self._in_turn(ids)
            left_out = set(ids).difference(order)
            seen, late = set[int](), set[int]()
            sights: list[tuple[Sight, TenantId]] = []
            question = ask_mapped(self._device, pages=pages, opened=opened)
            most_seconds = MOST_OF_A_CGROUP_SECONDS if pages else math.inf
            for process_id, found in one_round(self._looker, order, question, most_of_a_cgroup_seconds=most_seconds):
                if found is STUCK or found is SLOW:
                    self._note(process_id, found)
                if found is PUT_OFF:
                    late.add(process_id)
                if is_unseen(found):
                    left_out.add(process_id)
                    continue
                seen.add(process_id)
                self._stuck.pop(process_id, None)
                self._known.pop(process_id, None)
                if found is not None:
                    sight = sight_of(process_id, found)
                    sights.append((sight, self._learn(sight)))
            if pages:
                self._remember_turns(ids, seen, late)
            unseen = filter(None, (self._unseen(process_id, process_id in late) for process_id in sorted(left_out)))
            self._seen = seen | (self._seen & left_out - self._stuck.keys())
            self._known = {process_id: self._known[process_id] for process_id in ids if process_id in self._known}
            self.unseen = tuple(unseen)
            return sights, self.unseen

    def parts(self, question: Parts) -> dict[int, PartsSight]:
        """What is asked for, of the processes that are not gone. Raises NotLookedAt."""
        found: dict[int, PartsSight] = {}
        with self._lock:
            for process_id in question.by_process:
                if process_id in self._stuck:
                    raise _not_looked_at(process_id)
            for process_id, told in self._looker.looks(question.by_process, ask_parts(question)):
                if told is STUCK or told is SLOW:
                    self._note(process_id, told)
                if is_unseen(told):
                    raise _not_looked_at(process_id)
                if told is not None:
                    found[process_id] = parts_of(process_id, told)
        return found

    def check(self, inode: int, unseen: Iterable[Unseen]) -> None:
        """Raises NotLookedAt when one of them mapped a file when it was last seen."""
        for process in unseen:
            if process.known is not None and inode in process.known.inodes:
                raise _not_looked_at(process.process_id)

    def is_older(self, process: Unseen) -> bool:
        """Whether it was there before this daemon: the books may have what an earlier one saw of it."""
        return process.identity <= self._began

    def shown(self) -> tuple[int, dict[int, str]]:
        """How many processes cannot be looked at, and the first of them, by id with their cgroups."""
        unseen = [one for one in self.unseen if not one.is_late]
        path_in = self._books.tenants.hierarchy.path_in
        return len(unseen), {one.process_id: path_in(one.cgroup) or "" for one in unseen[:_MOST_SHOWN]}

    # -- memory ------------------------------------------------------------------------------------------------------

    def _in_turn(self, ids: list[int]) -> list[int]:
        """Whom to look at, first to last; who is left alone for now is left out. O(processes)."""
        now = time.monotonic()
        for process_id, stuck in list(self._stuck.items()):
            if procfs.identity(process_id) != stuck.identity:
                del self._stuck[process_id]
        cgroups = {stuck.cgroup for stuck in self._stuck.values()}
        again = sorted((stuck.until, process_id) for process_id, stuck in self._stuck.items() if stuck.until <= now)

        def rank(process_id: int) -> tuple[bool, int, bool]:
            cgroup = _cgroup_of(process_id) if cgroups or self._slow else b""
            is_slow = cgroup in self._slow
            turn = self._last_scans.get(process_id, 0) if is_slow else 0
            return is_slow or cgroup in cgroups, turn, process_id not in self._seen

        free = sorted((process_id for process_id in ids if process_id not in self._stuck), key=rank)
        return free + [process_id for _, process_id in again[:_AGAIN_AT_ONCE]]

    def _remember_turns(self, ids: list[int], seen: set[int], late: set[int]) -> None:
        self._scans += 1
        self._slow = frozenset(_cgroup_of(process_id) for process_id in late)
        for cgroup in self._slow - self._told_slow:
            if len(self._told_slow) < _MOST_SHOWN:
                path = self._books.tenants.hierarchy.path_in(cgroup) or "a cgroup that is gone"
                log.warning("processes of %s take long to look at: what each maps is seen every few scans", path)
                self._told_slow.add(cgroup)
        looked_at = dict.fromkeys(seen, self._scans)
        self._last_scans = {
            process_id: scan
            for process_id in ids
            if (scan := looked_at.get(process_id, self._last_scans.get(process_id)))
        }

    def _note(self, process_id: int, found: object) -> None:
        identity, before = procfs.identity(process_id), self._stuck.get(process_id)
        if identity is None:
            return
        pause = _FIRST_PAUSE_SECONDS
        if before is not None and before.identity == identity:
            pause = min(2 * before.pause_seconds, _LONGEST_PAUSE_SECONDS)
        elif len(self._stuck) < _MOST_SHOWN:
            why = "takes too long to look at" if found is SLOW else "cannot be looked at"
            log.warning("process %d %s: what it maps stays as it was", process_id, why)
        self._stuck[process_id] = _Stuck(identity, _cgroup_of(process_id), pause, time.monotonic() + pause)

    def _learn(self, sight: Sight) -> TenantId:
        tenant = NOBODY if sight.cgroup is None else self._books.tenants.tenant_in(sight.cgroup)
        identity = procfs.identity(sight.process.id)
        if identity is not None:
            self._known[sight.process.id] = Known(identity, tenant, sight.mappings.inodes() | sight.opened)
        return tenant

    def _unseen(self, process_id: int, is_late: bool) -> Unseen | None:
        """None when it is gone."""
        identity, known = procfs.identity(process_id), self._known.get(process_id)
        if identity is None:
            return None
        if known is not None and known.identity != identity:
            known = None
        return Unseen(process_id, identity, _cgroup_of(process_id), known, is_late)


def _cgroup_of(process_id: int) -> bytes:
    return procfs.cgroup_of(f"/proc/{process_id}") or b""


def _not_looked_at(process_id: int) -> NotLookedAt:
    return NotLookedAt(f"process {process_id}, which maps it, cannot be looked at")


def by_process(
    parts: Iterable[tuple[int, str, procfs.Mapping]],
) -> Mapping[int, tuple[str, tuple[procfs.Mapping, ...]]]:
    """For `Parts`: (process id, task, part of a mapping), put together by process."""
    found: dict[int, tuple[str, tuple[procfs.Mapping, ...]]] = {}
    for process_id, task, part in parts:
        found[process_id] = task, (*found.get(process_id, (task, ()))[1], part)
    return found
