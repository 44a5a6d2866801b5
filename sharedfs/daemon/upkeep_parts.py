"""The parts that look after pages which no request tells of, put together in one place: for the daemon, and for tests.

charges of the cgroup ─▶ moved charges ─▶ audit, recharge        mappings ─▶ books        pages in no file ─▶ room
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sharedfs.daemon.parts import Given, Parts
from sharedfs.linux.cgroup_memory import CgroupMemory
from sharedfs.maintenance.pins import Pins
from sharedfs.maintenance.recharge import Recharge
from sharedfs.pages.audit import Audit
from sharedfs.pages.detached_pages import DetachedPages
from sharedfs.pages.mapping_scan import MappingScan
from sharedfs.pages.moved_charges import MovedCharges
from sharedfs.pages.pool_charge import PoolCharge
from sharedfs.pages.short_mappings import ShortMappings
from sharedfs.pages.swap_scan import SwapScan
from sharedfs.pages.unused_windows import UnusedWindows
from sharedfs.pool.options import Reads
from sharedfs.storage.state_files import StateFiles


def _nothing() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Watched:
    """What they look at, beside what requests stand on.

    `memory` is that of the pool's cgroup, which is also charged for the files of `state`, and for `beside_bytes` on
    tmpfs that are not the pool's. Without `short` nobody tells of mappings that are gone before a scan.
    """

    state: StateFiles = field(default_factory=StateFiles)
    memory: CgroupMemory | None = None
    beside_bytes: Callable[[], int] = _nothing
    short: ShortMappings | None = None


@dataclass(frozen=True, slots=True)
class UpkeepParts:
    mappings: MappingScan
    moved: MovedCharges
    detached: DetachedPages
    swap: SwapScan
    recharge: Recharge
    pins: Pins
    audit: Audit


def build_upkeep(given: Given, parts: Parts, watched: Watched) -> UpkeepParts:
    """What is in no file takes room of the pool from here on."""
    store, books, state, reconcile = given.store, given.books, watched.state, parts.reconcile

    def reads_fast() -> bool:
        return given.options().reads is Reads.FAST and parts.device.passthrough

    charge = PoolCharge(store.tmpfs, books, state, watched.memory, watched.beside_bytes)
    moved = MovedCharges(store, books, reconcile, parts.charges, charge)
    detached = DetachedPages(books, charge, moved)
    store.tmpfs.room.put_aside(detached.bytes_now)
    windows = UnusedWindows(store, books, reconcile, state, given.faults)
    return UpkeepParts(
        MappingScan(books, reconcile, given.looks, reads_fast, watched.short),
        moved,
        detached,
        SwapScan(store, books),
        Recharge(store, books, parts.data_path, reconcile, parts.moves, windows, moved, state, given.faults),
        Pins(store, books, parts.data_path, windows),
        Audit(store, books, parts.charges, moved, given.looks),
    )
