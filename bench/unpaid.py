"""For how long each way to use a pool's memory is unpaid, and how much of it: the figures of docs/security.md.

    python -m bench.unpaid [--rounds 5] [--json]      in the root of the repository; some five minutes

In each round tenants, which are cgroups of its own, use 64 MiB in one way, and the pool is asked until its books have
that on the right bill. Unpaid is what lacked at the first answer after the act had ended; 0 means that it was billed
before the tenant had its answer. Needs root, and Linux 6.9 for what is mapped.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sharedfs.linux.cgroup_memory import batch_bytes
from sharedfs.linux.cgroups import CgroupVersion
from tests.support.mount import MountedPool, mounted_pool
from tests.support.pins import UNMAP, hold_in_pipes, move_agent
from tests.support.tenants import Tenant, Tenants, tenants_below

_MIB = 1 << 20
SIZE = 64 * _MIB
_POOL_SIZE = "256M"
_INODES = 20_000
_MOST_SECONDS = 30.0
_POLL_SECONDS = 0.002

Paid = Callable[[], int]


@dataclass
class Place:
    """What a way is tried on: a pool of its own, and tenants."""

    pool: MountedPool
    tenants: Tenants

    @property
    def file(self) -> Path:
        return self.pool.path / "f"

    def owned(self) -> Tenant:
        """A tenant that has written the file."""
        owner = self.tenants.make("owner")
        owner.do(_WRITE.format(path=self.file, size=SIZE))
        return owner

    def paid_by(self, tenant: Tenant) -> Paid:
        return lambda: self.pool.used(tenant)


@dataclass(frozen=True)
class Way:
    """`act` uses `bytes` in this way, and returns what asks how much of them is paid for."""

    name: str
    act: Callable[[Place], Paid]
    bytes: int = SIZE
    options: tuple[str, ...] = ()


_WRITE = "fd = os.open('{path}', os.O_RDWR | os.O_CREAT, 0o666); os.pwrite(fd, bytes({size}), 0)"
_MAP = "fd = os.open('{path}', os.O_RDWR); m = mmap.mmap(fd, {size}, flags=mmap.{flags}); os.close(fd)"
_TOUCH = f"for at in range(0, {SIZE}, 4096): m[at]"
_STORE = f"for at in range(0, {SIZE}, 4096): m[at] = 1"


def written(place: Place) -> Paid:
    return place.paid_by(place.owned())


def read(place: Place) -> Paid:
    place.owned()
    reader = place.tenants.make("reader")
    reader.do(f"fd = os.open('{place.file}', os.O_RDONLY); result = len(os.pread(fd, {SIZE}, 0))")
    return place.paid_by(reader)


def mapped(place: Place) -> Paid:
    place.owned()
    mapper = place.tenants.make("mapper")
    mapper.do(_MAP.format(path=place.file, size=SIZE, flags="MAP_SHARED") + f"\n{_TOUCH}")
    return place.paid_by(mapper)


def mapped_for_a_moment(place: Place) -> Paid:
    place.owned()
    mapper = place.tenants.make("mapper")
    mapper.do(_MAP.format(path=place.file, size=SIZE, flags="MAP_SHARED") + f"\n{_TOUCH}\nm.close()")
    return place.paid_by(mapper)


def mapped_by_a_short_process(place: Place) -> Paid:
    place.owned()
    mapper = place.tenants.make("mapper")
    does = _MAP.format(path=place.file, size=SIZE, flags="MAP_SHARED") + f"\n{_TOUCH}"
    mapper.do(f"child = os.fork()\nif not child:\n    exec({does!r})\n    os._exit(0)\nos.waitpid(child, 0)")
    return place.paid_by(mapper)


def faulted(place: Place, flags: str) -> Paid:
    tenant = place.tenants.make("tenant")
    tenant.do(f"fd = os.open('{place.file}', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, {SIZE}); os.close(fd)")
    tenant.do(_MAP.format(path=place.file, size=SIZE, flags=flags) + f"\n{_STORE}")
    return place.paid_by(tenant)


def removed_through_a_mapping(place: Place) -> Paid:
    """Here who owned the pages pays for nothing: what is told is what is on no bill any more."""
    owner, other = place.owned(), place.tenants.make("other")
    other.do(_MAP.format(path=place.file, size=SIZE, flags="MAP_SHARED") + "\nm.madvise(9)")
    return lambda: SIZE - place.pool.used(owner)


def read_fast_by_another(place: Place) -> Paid:
    """One opens it, and another one gets its descriptor: the process has moved."""
    place.owned()
    opener, reader = place.tenants.make("opener"), place.tenants.make("reader")
    agent = opener.agent()
    agent.do(f"fd = os.open('{place.file}', os.O_RDONLY)")
    move_agent(agent, opener, reader)
    agent.do(f"result = len(os.pread(fd, {SIZE}, 0))")
    return place.paid_by(reader)


def held_in_pipes(place: Place) -> Paid:
    owner, holder = place.owned(), place.tenants.make("holder")
    hold_in_pipes(holder, place.file, SIZE)
    holder.do(UNMAP)
    os.truncate(place.file, 0)
    owner.do("os.close(fd)")
    return lambda: sum(part.bytes for part in place.pool.holdings().detached if part.tenant) + 2 * batch_bytes()


def inodes(place: Place) -> Paid:
    maker = place.tenants.make("maker")
    maker.do(f"for number in range({_INODES}): os.close(os.open(f'{place.pool.path}/{{number}}', os.O_CREAT))")
    return lambda: sum(part.bytes for part in place.pool.holdings().inodes if part.tenant)


def left_below_a_bounded_cgroup(place: Place) -> Paid:
    above = place.tenants.make("above", 4 * SIZE)
    if above.hierarchy.version is CgroupVersion.V2:
        (above.directory / "cgroup.subtree_control").write_text("+memory")
    child = place.tenants.make("above/child")
    child.do(_WRITE.format(path=place.file, size=SIZE))
    child.exit()
    return place.paid_by(above)


WAYS = (
    Way("written by a request", written),
    Way("read by a request", read),
    Way("mapped", mapped),
    Way("mapped, read and unmapped at once", mapped_for_a_moment),
    Way("mapped by a process that ends at once", mapped_by_a_short_process),
    Way("a fault in a hole, shared mapping", lambda place: faulted(place, "MAP_SHARED")),
    Way("a fault in a hole, private mapping", lambda place: faulted(place, "MAP_PRIVATE")),
    Way("removed through a mapping (paid too long)", removed_through_a_mapping),
    Way("--reads fast, by a passed descriptor", read_fast_by_another, options=("--reads", "fast")),
    Way("in pipes, cut off their file", held_in_pipes),
    # Of 20,000 empty files 4,096 come with a size of 256 MiB.
    Way("inodes beyond those that come with the size", inodes, bytes=_MIB),
    Way("left by a removed cgroup, bounded above", left_below_a_bounded_cgroup),
)


def tried(way: Way) -> tuple[float, int]:
    """Seconds from the act's end until it is paid for, and the bytes that were unpaid at the first answer."""
    name = f"sharedfs-bench-{os.getpid()}"
    options = ("--size", _POOL_SIZE, "--cgroup-parent", f"{name}-pools", *way.options)
    with (
        tempfile.TemporaryDirectory(prefix="sharedfs-bench-") as base,
        tenants_below(name) as tenants,
        mounted_pool(Path(base, "mnt"), name, *options) as pool,
    ):
        try:
            paid = way.act(Place(pool, tenants))
            ended = time.monotonic()
            unpaid = max(0, way.bytes - paid())
            while paid() < way.bytes:
                if time.monotonic() - ended > _MOST_SECONDS:
                    raise click.ClickException(f"{way.name}: {paid()} of {way.bytes} bytes are paid for")
                time.sleep(_POLL_SECONDS)
            return (time.monotonic() - ended if unpaid else 0.0), unpaid
        finally:
            for tenant in tenants.made:
                tenant.end_processes()


@click.command(help=__doc__, epilog="Example: python -m bench.unpaid --rounds 3")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Of each way.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of a table.")
def main(rounds: int, as_json: bool) -> None:
    told: dict[str, dict[str, float]] = {}
    for way in WAYS:
        found = [tried(way) for _ in range(rounds)]
        seconds = [took for took, _ in found]
        told[way.name] = {
            "median_seconds": statistics.median(seconds),
            "longest_seconds": max(seconds),
            "most_unpaid_bytes": max(unpaid for _, unpaid in found),
        }
        click.echo(f"{way.name}: {told[way.name]['longest_seconds']:.2f} s", err=True)
    if as_json:
        click.echo(json.dumps({"rounds": rounds, "bytes": SIZE, "ways": told}, indent=2))
        return
    table = Table(f"{SIZE // _MIB} MiB, {rounds} rounds", "median s", "longest s", "unpaid MiB", box=None)
    for name, figures in told.items():
        unpaid = figures["most_unpaid_bytes"] / _MIB
        table.add_row(name, *(f"{figures[key]:.2f}" for key in ("median_seconds", "longest_seconds")), f"{unpaid:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
