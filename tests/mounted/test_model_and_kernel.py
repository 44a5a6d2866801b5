"""The lab's model checked against the kernel: one workload, for real on tmpfs and as a trace under `first_touch`.

The bytes that this kernel charges to each cgroup are those that the replay bills. Only first touch can be checked, for
it is what kernels do; one that reparents has the zombie's bytes on the parent, and the sum is the same.
"""

from dataclasses import dataclass, field
from pathlib import Path

from controller.lab.cost_meter import Meter
from controller.lab.events import Event, MemoryTrace
from controller.lab.replay import Clocks, Replay
from controller.lab.scenarios.trace_builder import Sheet
from controller.lab.trace_index import survey
from controller.policies.first_touch import FirstTouch
from sharedfs.linux.cgroups import CgroupVersion
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE, MIB = 4096, 1 << 20


@dataclass
class Both:
    """Whatever is done is done by a real process of a tenant, and noted as an event."""

    place: Path
    sheet: Sheet = field(default_factory=Sheet)
    seconds: int = 0
    numbers: dict[Tenant, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def start(self, tenant: Tenant) -> None:
        self.numbers[tenant] = self.sheet.start(self.seconds, tenant.path)

    def write(self, tenant: Tenant, name: str, start: int, end: int) -> None:
        tenant.do(f"fd = os.open({self._path(name)!r}, os.O_WRONLY | os.O_CREAT)")
        tenant.do(f"result = os.pwrite(fd, bytes({end - start}), {start}); os.close(fd)")
        self._note(Event.ALLOCATE, tenant, name, start, end)

    def read(self, tenant: Tenant, name: str, start: int, end: int) -> None:
        tenant.do(f"fd = os.open({self._path(name)!r}, os.O_RDONLY)")
        tenant.do(f"result = len(os.pread(fd, {end - start}, {start})); os.close(fd)")
        self._note(Event.TOUCH, tenant, name, start, end)

    def map(self, tenant: Tenant, name: str, start: int, end: int) -> None:
        """Maps the range, and writes to every page of it."""
        tenant.do(f"fd = os.open({self._path(name)!r}, os.O_RDWR)")
        tenant.do(f"view = mmap.mmap(fd, {end - start}, offset={start})")
        tenant.do(f"for page in range(0, {end - start}, {PAGE}): view[page] = 1")
        tenant.do("os.close(fd)")
        self._note(Event.ALLOCATE, tenant, name, start, end)
        self._note(Event.MAP, tenant, name, start, end)

    def truncate(self, tenant: Tenant, name: str, size: int, was: int) -> None:
        tenant.do(f"os.truncate({self._path(name)!r}, {size})")
        self._note(Event.FREE, tenant, name, size, was)

    def exit(self, tenant: Tenant) -> None:
        tenant.exit()
        self.seconds += 1
        self.sheet.exit(self.seconds, self.numbers[tenant])

    def replayed(self) -> Meter:
        self.sheet.file(self.seconds + 1, "end")
        trace = MemoryTrace((self.sheet.turn(),))
        found = survey(trace, lambda rows: None)
        (meter,) = Replay(trace, found, [FirstTouch()], Clocks()).run(lambda rows: None).meters
        return meter

    def _path(self, name: str) -> str:
        return str(self.place / name)

    def _note(self, event: Event, tenant: Tenant, name: str, start: int, end: int) -> None:
        if name not in self.files:
            self.files[name] = self.sheet.file(self.seconds, name)
        self.seconds += 1
        pages = (start // PAGE, (end - 1) // PAGE)
        self.sheet.add(Event(event), self.seconds, self.numbers[tenant], self.files[name], *pages)


def test_this_kernel_charges_what_the_replay_of_first_touch_bills(plain_tmpfs: Path, tenants: Tenants) -> None:
    place = plain_tmpfs / tenants.path.strip("/")
    place.mkdir()
    both = Both(place)
    a, b, c = (tenants.make(name) for name in "abc")
    for tenant in (a, b, c):
        both.start(tenant)
    both.write(a, "model", 0, 4 * MIB)
    both.read(b, "model", 0, 4 * MIB)
    both.write(b, "model", MIB, 5 * MIB)  # the last MiB is new, and b's
    both.map(c, "model", 2 * MIB, 3 * MIB)  # a's, whoever maps it
    both.write(c, "scratch", 0, 2 * MIB)
    both.truncate(a, "scratch", MIB, 2 * MIB)
    both.write(c, "holes", MIB - PAGE, MIB)
    both.map(b, "holes", 0, MIB)  # all but the last page
    both.exit(a)
    both.read(b, "model", 0, 5 * MIB)

    meter = both.replayed()
    billed = {cgroup.path: int(meter.level[number]) for number, cgroup in enumerate(meter.accounts.cgroups)}
    assert billed[a.path] == 4 * MIB
    assert sum(billed.values()) == meter.resident_bytes
    for tenant in (b, c):
        wait_until(lambda t=tenant: t.statistic("shmem") == billed[t.path], f"{tenant.path} pays what was billed", 20)
    # The zombie's pages are nobody's that lives: what all groups below are charged, less what the living are.
    line = "total_shmem" if tenants.hierarchy.version is CgroupVersion.V1 else "shmem"
    file = tenants.hierarchy.directory(tenants.path) / "memory.stat"
    charged = f"{line} {sum(billed.values())}"
    wait_until(lambda: charged in file.read_text().splitlines(), "the group above is charged all, the zombie's too", 20)
    assert meter.moments[-1].dying_bytes == 4 * MIB
    assert meter.moments[-1].dying_groups == 1
