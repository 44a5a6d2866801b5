"""The demonstration's story for the terminal: short plain sentences, and a table where numbers are compared."""

from rich.console import Console
from rich.table import Table

from controller.api.types import Bills, TenantBill
from deploy.demo.acts import BUDGET_BYTES, CROWD, CROWD_FILE_BYTES, FILE_BYTES, CrowdAct, PoolAct, TmpfsAct
from deploy.demo.host import kernel_release, zombies_stay
from sharedfs.api.types import PoolStatus
from sharedfs.common.units import format_size
from sharedfs.linux.cgroups import MemoryHierarchy

SETTLE_SECONDS = 2.0
_console = Console(highlight=False)


def opening(hierarchy: MemoryHierarchy, pool: PoolStatus, runtime: str | None, *, passthrough: bool) -> None:
    _heading("sharedfs: shared memory that is paid for by those who use it")
    where = "hybrid, memory on v1" if hierarchy.hybrid else f"v{hierarchy.version.value}"
    _say(f"This host: Linux {kernel_release()}, cgroups {where}. The pool is mounted at {pool.mountpoint}.")
    if runtime is not None:
        _say(f"The tenants are containers of {runtime}, with the host's files read-only and the pool bound into each.")
    if not passthrough:
        _say("Files of a pool cannot be mapped shared here: that takes Linux 6.9. The tenants read(2) instead.")


def of_pool(act: PoolAct, tenants: str, *, passthrough: bool) -> None:
    before, after = act.survivor
    verb = "maps" if passthrough else "reads"
    _heading("1. Two tenants, one file, on a pool")
    _say(
        f"Two {tenants}, a and b, each with {_size(BUDGET_BYTES)} from its manager. "
        f"a writes a file of {_size(FILE_BYTES)} and {verb} it; b {verb} it too."
    )
    table = _table("tenant", "uses", "pays", "budget", "limit now", "kernel charges it (shmem)")
    for name, bill in (("a", act.leaver), ("b", before)):
        table.add_row(
            name,
            _size(bill.used_bytes),
            f"[bold]{_size(bill.share_bytes)}[/]",
            _size(bill.budget_bytes),
            f"[bold]{_size(bill.limit_bytes)}[/]",
            _size(act.shmem_bytes[bill.tenant]),
        )
    _console.print(table)
    _conserved(act.shared)
    _say(f"limit = budget - share. {_settled(act.settle_seconds[0])}")

    _heading("2. a exits")
    table = _table("tenant b", "uses", "pays", "limit")
    for when, bill in (("before", before), ("after", after)):
        table.add_row(when, _size(bill.used_bytes), _size(bill.share_bytes), _size(bill.limit_bytes))
    table.add_row("change", _change(before, after, "used"), _change(before, after, "share"), _fall(before, after))
    _console.print(table)
    _conserved(act.alone)
    _say(f"b is the only user now: it pays for all, and its limit fell by as much. {_settled(act.settle_seconds[1])}")
    _say(
        f"Then b exits too. The file stays, as {_size(act.deserted.unclaimed_bytes)} that nobody claims "
        "and no tenant pays."
    )


def of_tmpfs(act: TmpfsAct) -> None:
    a, b = (_size(charged) for charged in act.shmem_bytes.values())
    _heading("3. The same on plain tmpfs")
    _say(f"Both map the same file. The kernel charges a, the first toucher, with {a}, and b with {b}.")
    _say(
        f"a exits: b uses all of it and is charged with {_size(act.survivor_shmem_bytes)}. When b is gone too, "
        f"{_size(act.parent_shmem_bytes)} stay on the account of the parent cgroup."
    )


def of_crowds(on_pool: CrowdAct, on_tmpfs: CrowdAct) -> None:
    _heading(f"4. {on_pool.tenants} more come, write {_size(CROWD_FILE_BYTES)} each, and go")
    table = _table("dying cgroups", "before", "when all are gone", "when their files are", "zombies")
    for name, act in (("sharedfs", on_pool), ("plain tmpfs", on_tmpfs)):
        counts = (act.before, act.with_files, act.without_files)
        table.add_row(name, *map(str, counts), f"[bold]{act.zombies}[/]")
    _console.print(table)
    if not on_tmpfs.zombies:
        _say(
            "tmpfs left none, which is not what this version of Linux is known for."
            if zombies_stay(kernel_release())
            else "tmpfs leaves none either: since Linux 7.1 the pages of a removed cgroup move to its parent. "
            "Who pays is as wrong as before."
        )


def side_by_side(pool: PoolAct, tmpfs: TmpfsAct, zombies: tuple[CrowdAct, CrowdAct]) -> None:
    a, b = tmpfs.shmem_bytes.values()
    before, after = pool.survivor
    _heading("Side by side")
    table = _table(f"{_size(FILE_BYTES)} used by a and b", "sharedfs", "plain tmpfs")
    rows = (
        ("a pays, while both use it", pool.leaver.share_bytes, a),
        ("b pays, while both use it", before.share_bytes, b),
        ("b pays, after a has gone", after.share_bytes, tmpfs.survivor_shmem_bytes),
        ("b's room, while both use it", before.limit_bytes, BUDGET_BYTES - b),
        ("b's room, after a has gone", after.limit_bytes, BUDGET_BYTES - tmpfs.survivor_shmem_bytes),
    )
    for label, ours, theirs in rows:
        table.add_row(label, _size(ours), _size(theirs))
    table.add_row(f"zombies of {CROWD} that came and went", *(str(crowd.zombies) for crowd in zombies))
    _console.print(table)


def kept(mountpoint: str) -> None:
    _heading("Yours to try")
    _say(f"The pool at {mountpoint} and the controller go on running. Use the pool from any cgroup, and look:")
    for line in ("sharedfs status", "sharedctl bills", f"sharedctl users {mountpoint}/FILE"):
        _console.print(f"    .venv/bin/{line}", soft_wrap=True)
    _say("End both with [bold]deploy/uninstall[/].")


def put_back() -> None:
    _say("\nEverything is put back as it was. `deploy/quickstart --keep` leaves a pool to try.")


def _heading(text: str) -> None:
    _console.print(f"\n[bold cyan]{text}[/]")


def _say(text: str) -> None:
    _console.print(text)


def _table(first: str, *numbers: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="dim")
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _size(size_bytes: int | None) -> str:
    """Whole MiB as such: these are what the eye compares."""
    if size_bytes is None:
        return "none"
    mebibytes, rest = divmod(size_bytes, 1 << 20)
    return f"{mebibytes} MiB" if size_bytes and not rest else format_size(size_bytes)


def _conserved(bills: Bills) -> None:
    shares_bytes = sum(tenant.share_bytes for tenant in bills.tenants)
    _say(
        f"To the byte: shares {shares_bytes:,} + unclaimed {bills.unclaimed_bytes:,} "
        f"= resident {bills.pool_resident_bytes:,}."
    )


def _settled(seconds: float) -> str:
    late = "" if seconds <= SETTLE_SECONDS else f", later than the {SETTLE_SECONDS:.0f} s it should take"
    return f"Settled after {seconds:.1f} s{late}."


def _change(before: TenantBill, after: TenantBill, what: str) -> str:
    changed_bytes = getattr(after, f"{what}_bytes") - getattr(before, f"{what}_bytes")
    return f"{'+' if changed_bytes > 0 else ''}{_size(changed_bytes)}"


def _fall(before: TenantBill, after: TenantBill) -> str:
    if before.limit_bytes is None or after.limit_bytes is None:
        return "none"
    return f"-{_size(before.limit_bytes - after.limit_bytes)}"
