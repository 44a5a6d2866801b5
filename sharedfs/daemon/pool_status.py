"""What a pool says of itself (`sharedfs status`)."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sharedfs.accounting.books import Books
from sharedfs.api.types import DataPathKind, PoolStatus
from sharedfs.daemon.own_mount import OwnMount
from sharedfs.daemon.parts import Parts
from sharedfs.daemon.upkeep_parts import UpkeepParts
from sharedfs.linux.memory_limits import MemoryLimits
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.spill import Spill
from sharedfs.pool.cgroup import oom_score_adj
from sharedfs.pool.handoff import Start
from sharedfs.pool.options import PoolOptions, Reads, setting_words, settings_of, shown_flags
from sharedfs.storage.tree import Store

_MAPPED = {Reads.EXACT: DataPathKind.EXACT_AND_MAPPED, Reads.FAST: DataPathKind.FAST_AND_MAPPED}


@dataclass(slots=True)
class StatusReader:
    """What it is read from. `read` is for any thread."""

    start: Start
    options: Callable[[], PoolOptions]
    mount: OwnMount
    pool_cgroup: str
    limits: MemoryLimits
    books: Books
    store: Store
    looks: ProcessLooks
    spill: Spill
    parts: Parts
    watch: UpkeepParts
    _flags: str = ""

    def read(self) -> PoolStatus:
        options = self.options()
        statistics = self.books.questions.statistics()
        tenants = len(self.books.tenants)
        swapped_bytes = self.books.swapped.bytes
        bound = self.store.tmpfs.room.look()
        passthrough = self.parts.device.passthrough
        with suppress(OSError):  # no descriptor is left: as they were
            mount = self.mount.find()
            self._flags = "" if mount is None else shown_flags(mount)
        spilled = self.spill.files()
        unseen_processes, unseen = self.looks.shown()
        return PoolStatus(
            name=options.name,
            mountpoint=options.mountpoint,
            flags=self._flags,
            settings=",".join(setting_words(settings_of(options))),
            keeper_pid=self.start.keeper_pid,
            daemon_pid=os.getpid(),
            restarts=self.start.restarts,
            reloads=self.start.reloads,
            survives="the daemon's death",
            size_bytes=options.size_bytes,
            bound_bytes=bound.bytes,
            bounded_by=bound.by,
            hides_limits=self.limits.hides_some,
            oom_score_adj=oom_score_adj(),
            resident_bytes=statistics.resident_bytes,
            foreign_bytes=statistics.foreign_bytes,
            swapped_bytes=swapped_bytes,
            recharged_bytes=self.watch.recharge.recharged_bytes + self.watch.moved.recharged_bytes,
            stranded_bytes=self.watch.recharge.stranded_bytes,
            moved_charge_bytes=self.watch.moved.bytes,
            detached_bytes=self.books.detached.bytes,
            inode_bytes=sum(self.store.billed_inodes(self.books.tenants.payer_for).values()),
            recharge_refusal=self.watch.recharge.refusal,
            deleted_files=self.parts.unclaimed.deleted_files,
            deleted_bytes=self.parts.unclaimed.deleted_bytes,
            spilled_files=len(spilled),
            spilled_bytes=sum(spilled.values()),
            brought_back_files=self.spill.brought_back,
            tenants=tenants,
            files=statistics.files,
            data_path=_MAPPED[options.reads] if passthrough else DataPathKind.EXACT,
            engine=self.parts.data_path.engine,
            mmap="shared mappings at memory speed" if passthrough else _why_no_mappings(options),
            pool_cgroup=self.pool_cgroup,
            sharing_classes=statistics.classes,
            ledger_bytes=statistics.memory_bytes,
            mapping_scans=self.watch.mappings.scans,
            mapping_records_lost=self.watch.mappings.short.lost if self.watch.mappings.short.are_seen else None,
            unseen_processes=unseen_processes,
            unseen=unseen,
            refused=self.books.admission.refused,
            requests={
                **self.parts.data_path.requests,
                "namespace": self.parts.frequent.answered + self.parts.channel.forwarded,
            },
        )


def _why_no_mappings(options: PoolOptions) -> str:
    return f"no shared mappings (ENODEV): {'needs Linux 6.9' if options.passthrough else 'mounted so'}"
