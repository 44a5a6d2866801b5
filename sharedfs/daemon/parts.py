"""The parts that serve a pool's requests, put together in one place: for the daemon, and for tests without a kernel.

device ◀── data path, names, what gives way ◀── channel
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers
from sharedfs.fuse.device import Device, InHand
from sharedfs.fuse.relay import Channel
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.linux.shortage import Shortage
from sharedfs.maintenance.giving_way import GivingWay
from sharedfs.maintenance.unclaimed import UnclaimedFiles
from sharedfs.ops.data import DataPath
from sharedfs.ops.name_dispatch import FrequentRequests
from sharedfs.ops.namespace import Namespace
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.growth import Growth
from sharedfs.pages.page_moves import PageMoves
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.reaper import Reaper
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.spill import Spill
from sharedfs.pool.options import PoolOptions, Reads, UnclaimedRule
from sharedfs.storage.fault_injection import Faults, hidden_features
from sharedfs.storage.fd_cache import data_files
from sharedfs.storage.journal import Journal
from sharedfs.storage.tree import Store


@dataclass(frozen=True, slots=True)
class Given:
    """What the parts stand on. `options` are those in force, which a remount changes.

    `on_end` is told, in the thread it happens in, that the connection is over (None), or what broke a part.
    `on_init` is told the kernel's INIT request. `restarts`: so many daemons have served this pool before.
    """

    options: Callable[[], PoolOptions]
    store: Store
    books: Books
    journal: Journal
    looks: ProcessLooks
    spill: Spill
    device_fd: int
    on_end: Callable[[BaseException | None], None]
    events: TaskEvents | None = None
    faults: Faults | None = None
    in_hand: InHand | None = None
    on_init: Callable[[bytes], None] | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """Nothing runs yet: `channel` and `reaper` are to be started, when what another daemon left is dealt with.

    `callers` are for the names, with the namespace's lock held; the data path has its own.
    """

    device: Device
    moves: PageMoves
    reconcile: Reconcile
    allocation: Allocation
    reaper: Reaper
    callers: Callers
    namespace: Namespace
    unclaimed: UnclaimedFiles
    giving_way: GivingWay
    data_path: DataPath
    frequent: FrequentRequests
    channel: Channel


def build(given: Given, resources: ExitStack) -> Parts:
    """`resources` takes the parts apart again, but for the channel."""
    store, books, events, options = given.store, given.books, given.events, given.options()
    device, moves = Device(given.device_fd), PageMoves(books, given.looks)
    reconcile = Reconcile(store, books, moves, options.huge)
    allocation = Allocation(store, books, reconcile, options.huge)
    reaper = Reaper(store, books, allocation, given.faults, given.on_end)
    resources.callback(reaper.close)
    growth = Growth(store, books, allocation, options.reserve_bytes, reaper)
    files, pump_callers, callers = data_files(store.mount_fd), Callers(books, events), Callers(books, events)
    namespace = Namespace(
        store,
        files,
        books,
        allocation,
        reconcile,
        device,
        growth,
        callers,
        given.spill,
        reaper,
        fast_reads=options.reads is Reads.FAST,
        incarnation=given.restarts,
    )
    unclaimed = UnclaimedFiles(store, books, namespace, given.spill, device)
    giving_way = GivingWay(
        store,
        books,
        namespace,
        unclaimed,
        lambda: given.options().unclaimed is UnclaimedRule.YIELD,
        unclaimed.tell,
        reaper,
    )
    growth.give_way, growth.space_to_give = giving_way.for_bytes, giving_way.available_bytes

    def make_room() -> None:
        """In the request pump's thread, between two requests."""
        files.make_room()
        pump_callers.make_room()
        with namespace.lock:
            namespace.make_room()

    shortage = Shortage(make_room, reaper.free_some, giving_way.for_request)
    data_path = DataPath(
        store, files, books, allocation, growth, reaper, pump_callers, events, device, shortage, given.on_end
    )
    resources.callback(data_path.close)
    frequent = FrequentRequests(namespace, given.journal, device, shortage, pump_callers.tenant_of, given.on_end)
    resources.callback(frequent.close)
    channel = Channel(
        device,
        {**data_path.handlers, **frequent.handlers},
        pump_callers.tenant_of,
        shortage=shortage,
        shortcut=data_path.shortcut,
        want_passthrough=options.passthrough,
        on_end=given.on_end,
        buffer=given.journal.request,
        on_init=given.on_init,
        on_turn=given.journal.answers_put_off,
        in_hand=given.in_hand,
        hidden_features=hidden_features(),
    )
    return Parts(
        device,
        moves,
        reconcile,
        allocation,
        reaper,
        callers,
        namespace,
        unclaimed,
        giving_way,
        data_path,
        frequent,
        channel,
    )
