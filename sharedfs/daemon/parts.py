"""The parts that serve a pool's requests, put together in one place: for the daemon, and for tests without a kernel.

pages ◀── names, what gives way ◀── growth ◀── sizes, open files, data path ◀── channel
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from sharedfs.accounting.books import Books
from sharedfs.accounting.callers import Callers, Remembered
from sharedfs.fuse.device import Device, InHand
from sharedfs.fuse.relay import Channel
from sharedfs.fuse.shortage import Shortage
from sharedfs.linux.perf_events import TaskEvents
from sharedfs.maintenance.giving_way import GivingWay
from sharedfs.maintenance.gone_names import GoneNames, TakenOut
from sharedfs.maintenance.unclaimed import UnclaimedFiles
from sharedfs.ops.attributes import Attributes
from sharedfs.ops.content import Content
from sharedfs.ops.data import DataPath
from sharedfs.ops.name_dispatch import FrequentRequests
from sharedfs.ops.names import Names
from sharedfs.ops.namespace import Namespace
from sharedfs.ops.open_files import OpenFiles
from sharedfs.ops.recent_uses import RecentUses
from sharedfs.ops.references import References
from sharedfs.ops.sizes import Sizes
from sharedfs.pages.allocation import Allocation
from sharedfs.pages.full_pool import FullPool
from sharedfs.pages.growth import Growth
from sharedfs.pages.kernel_charges import KernelCharges
from sharedfs.pages.page_moves import PageMoves
from sharedfs.pages.process_looks import ProcessLooks
from sharedfs.pages.reaper import Reaper
from sharedfs.pages.reconcile import Reconcile
from sharedfs.pages.spill import Spill
from sharedfs.pool.options import PoolOptions, Reads, UnclaimedRule
from sharedfs.storage.fault_injection import Faults, hidden_features
from sharedfs.storage.fd_cache import Descriptors, data_files
from sharedfs.storage.journal import Journal
from sharedfs.storage.open_dirs import Listings
from sharedfs.storage.tree import Store


@dataclass(frozen=True, slots=True)
class Given:
    """What the parts stand on. `options` are those in force, which a remount changes.

    `on_end` is told, in the thread it happens in, that the connection is over (None), or what broke a part.
    `on_init` is told the kernel's INIT request. `restarts`: so many daemons have served this pool before. `pool_inode`
    is that of the cgroup that the daemon lives in, 0 for none.
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
    pool_inode: int = 0
    remembered: Remembered = field(default_factory=Remembered)

    def yields(self) -> bool:
        """Whether unclaimed files give way to requests, by the options in force."""
        return self.options().unclaimed is UnclaimedRule.YIELD


@dataclass(frozen=True, slots=True)
class Parts:
    """Nothing runs yet: `channel` and `reaper` are to be started, when what another daemon left is dealt with.

    `callers` are for the names, with the namespace's lock held; the data path has its own.
    """

    device: Device
    moves: PageMoves
    charges: KernelCharges
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
    device, moves, files = Device(given.device_fd), PageMoves(books, given.looks), data_files(store.access)
    remembered = given.remembered
    pump_callers, callers = Callers(books, events, remembered), Callers(books, events, remembered)
    charges = KernelCharges(books, given.pool_inode)
    resources.callback(charges.close)
    reconcile = Reconcile(store, books, moves, options.huge, charges)
    allocation = Allocation(store, books, reconcile, options.huge)
    reaper = Reaper(store, books, allocation, given.faults, given.on_end)
    resources.callback(reaper.close)

    uses, content = RecentUses(store.lock), Content(store, given.spill)
    references = References(store, books, files, given.spill, reaper)
    names = Names(store, books, callers, references, content)
    gone = GoneNames(_forgets_names(device))
    unclaimed = UnclaimedFiles(store, books, names, uses, given.spill, device, gone.put)
    giving_way = GivingWay(store, books, content, unclaimed, given.yields, gone.put, reaper)

    growth = Growth(store, books, allocation, options.reserve_bytes, reaper, giving_way)
    listings, fast_reads = Listings(store, given.restarts), options.reads is Reads.FAST
    open_files = OpenFiles(
        store, files, books, reconcile, device, callers, content, uses, listings, fast_reads=fast_reads
    )
    sizes = Sizes(store, books, allocation, growth, callers, given.spill, uses)
    attributes = Attributes(store, files, content, sizes)
    namespace = Namespace(store, listings, callers, names, references, open_files, sizes, attributes)

    shortage = Shortage(
        _room_maker(files, pump_callers, namespace),
        reaper,
        giving_way.for_request,
        FullPool(store, books, reaper).tell,
        store.let_others_close,
    )
    data_path = DataPath(
        store, files, books, allocation, growth, reaper, pump_callers, events, device, shortage, given.on_end
    )
    resources.callback(data_path.close)
    frequent = FrequentRequests(namespace, given.journal, device, shortage, pump_callers.tenant_of, given.on_end)
    resources.callback(frequent.close)
    channel = _channel(given, device, data_path, frequent, pump_callers, shortage)
    return Parts(
        device,
        moves,
        charges,
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


def _forgets_names(device: Device) -> Callable[[TakenOut], None]:
    def tell_kernel(taken: TakenOut) -> None:
        device.forget_name(taken.parent, taken.inode, taken.name)
        device.expire_attributes(taken.parent)

    return tell_kernel


def _room_maker(files: Descriptors, pump_callers: Callers, namespace: Namespace) -> Callable[[], None]:
    def make_room() -> None:
        """In the request pump's thread, between two requests."""
        files.make_room()
        pump_callers.make_room()
        with namespace.lock:
            namespace.make_room()

    return make_room


def _channel(
    given: Given,
    device: Device,
    data_path: DataPath,
    frequent: FrequentRequests,
    pump_callers: Callers,
    shortage: Shortage,
) -> Channel:
    return Channel(
        device,
        {**data_path.handlers, **frequent.handlers},
        pump_callers.tenant_of,
        shortage=shortage,
        shortcut=data_path.shortcut,
        want_passthrough=given.options().passthrough,
        on_end=given.on_end,
        buffer=given.journal.request,
        on_init=given.on_init,
        on_turn=given.journal.answers_put_off,
        in_hand=given.in_hand,
        hidden_features=hidden_features(),
    )
