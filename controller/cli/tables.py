"""The API's answers for people: tables of sizes, plain where the output is no terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from controller.api.client import Answer, read
from controller.api.types import (
    Bills,
    CapStates,
    ExitForecast,
    Explanation,
    FileUsers,
    GroupBill,
    Health,
    Policies,
    PolicyShare,
    TenantBill,
    Unclaimed,
    UsageHistory,
    WritePlan,
)
from controller.zombies.types import Zombies
from sharedfs.common.terminal import print_table, say
from sharedfs.common.units import format_size

_FRESH_SECONDS = 2.0
"""Books that are older than this are those of a pool that is late: it is asked twice a second."""


def bills(answer: Bills) -> None:
    named = any(line.name for line in answer.tenants)
    rows = [
        (
            *((line.name or "-",) if named else ()),
            line.tenant,
            line.state,
            _size(line.share_bytes),
            _size(line.used_bytes),
            _size(line.budget_bytes) + (" (report)" if line.report_only else ""),
            _size(line.limit_bytes) + ("" if line.bound_by in (None, line.tenant) else f" ({line.bound_by})"),
            _size(line.kernel_usage_bytes),
            _size(line.over_bytes),
            _debt(line),
        )
        for line in answer.tenants
    ]
    heads = ("TENANT", "STATE", "SHARE", "USED", "BUDGET", "LIMIT", "KERNEL USAGE", "OVER", "DEBT")
    print_table(("NAME", *heads) if named else heads, rows, texts=3 if named else 2)
    if answer.groups:
        groups = [
            (
                line.cgroup,
                _size(line.due_bytes),
                _size(line.budget_bytes),
                _size(line.limit_bytes),
                _size(line.kernel_usage_bytes),
                _debt(line),
            )
            for line in answer.groups
        ]
        say("")
        print_table(("ABOVE TENANTS", "DUE", "BUDGET", "LIMIT", "KERNEL USAGE", "DEBT"), groups, texts=1)
    _swap(answer)
    say(
        f"resident {_size(answer.pool_resident_bytes)}, of this unclaimed {_size(answer.unclaimed_bytes)},"
        f" foreign {_size(answer.foreign_bytes)}, in swap {_size(answer.swapped_bytes)}"
        + (f"; in no file any more {_size(answer.detached_bytes)}" if answer.detached_bytes else "")
        + (f"; names and inodes {_size(answer.inode_bytes)}" if answer.inode_bytes else "")
        + (f"; debts {_size(answer.debt_bytes)}" if answer.debt_bytes else "")
        + (f", of these borne by others {_size(answer.borne_bytes)}" if answer.borne_bytes else "")
    )

    for pool in answer.pools:
        if pool.age_seconds is None:
            say(f"pool {pool.pool} has not answered yet, so no bill has it: {pool.last_error or 'wait for it'}")
        elif pool.age_seconds > _FRESH_SECONDS:
            say(f"pool {pool.pool} answers late: its part of the bill is {format_age(pool.age_seconds)} old")


def caps(answer: CapStates) -> None:
    rows = [
        (line.tenant, line.pool or "(each)", line.cap if line.cap.endswith("%") else _size(int(line.cap)))
        for line in answer.caps
    ]
    print_table(("TENANT", "POOL", "CAP"), rows, texts=2)


def _swap(answer: Bills) -> None:
    if not answer.swapped_bytes:
        return
    swap = [
        (
            line.tenant,
            _size(line.swapped_bytes),
            _size(line.swap_budget_bytes),
            _size(line.swap_limit_bytes),
            _size(line.swap_debt_bytes),
        )
        for line in answer.tenants
        if line.swapped_bytes or line.swap_debt_bytes
    ]
    say("")
    print_table(("IN SWAP", "SHARE", "BUDGET", "LIMIT", "DEBT"), swap, texts=1)


def status(answer: Health) -> None:
    rows = [
        (
            pool.pool,
            "never" if pool.age_seconds is None else format_age(pool.age_seconds),
            str(pool.errors),
        )
        for pool in answer.pools
    ]
    say(
        f"controller {answer.version}: {answer.settlements:,} settlements,"
        f" {answer.limit_writes:,} writes to limits, {answer.orders_put_off:,} put off"
        + (", dry run" if answer.dry_run else "")
    )
    print_table(("POOL", "AGE OF BOOKS", "ERRORS"), rows, texts=1)
    for pool in answer.pools:
        if pool.errors:
            say(f"{pool.pool}: last error: {pool.last_error}")


def _debt(line: TenantBill | GroupBill) -> str:
    age = line.debt_age_seconds
    borne_bytes = line.borne_bytes if isinstance(line, TenantBill) else 0
    return (
        _size(line.debt_bytes)
        + ("" if age is None else f" for {format_age(age)}")
        + (f", bears {_size(borne_bytes)}" if borne_bytes else "")
    )


def format_age(seconds: float) -> str:
    """A duration in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def history(answer: UsageHistory) -> None:
    rows = [
        (
            line.tenant or "(unclaimed)",
            line.pool,
            format_age(line.covered_seconds),
            *(
                _size(round(byte_seconds / line.covered_seconds)) if line.covered_seconds else "-"
                for byte_seconds in (line.share_byte_seconds, line.used_byte_seconds)
            ),
            f"{line.share_byte_seconds / (3600 << 30):.3f}",
        )
        for line in answer.lines
    ]
    print_table(("TENANT", "POOL", "FOR", "MEAN SHARE", "MEAN USED", "GIB HOURS PAID"), rows, texts=2)


def plan(answer: WritePlan) -> None:
    rows = [(line.cgroup, line.file.rsplit("/", 1)[1], line.state, line.now, line.text) for line in answer.writes]
    print_table(("CGROUP", "FILE", "STATE", "NOW", "NEW"), rows, texts=3)
    if answer.dry_run:
        say("dry run: none of this is written")


def explain(answer: Explanation) -> None:
    say(f"{answer.tenant}: share {_size(answer.share_bytes)} of {_size(answer.used_bytes)} used")
    files = [
        (
            file.pool,
            file.path,
            _size(file.used_bytes),
            _size(file.touched_bytes) + (" *" if file.by_range else ""),
            _size(file.mapped_bytes),
            _size(file.opened_bytes),
            _size(file.share_bytes),
        )
        for file in answer.files
    ]
    print_table(("POOL", "FILE", "USED", "READ, WRITTEN", "MAPPED", "OPEN", "SHARE"), files, texts=2)
    if any(file.by_range for file in answer.files):
        say("* it was mapped for too short a time to be looked at: all in the mapping's range counts as read")
    if answer.others:
        say(f"and {answer.others:,} files more, with {_size(answer.others_share_bytes)} of the share (--files)")
    classes = [
        (
            held.pool,
            "\n".join(payer + (" (mapped)" if payer in held.mapped else "") for payer in held.payers),
            (held.owner or "-")
            + (" (foreign)" if held.foreign else "")
            + (" (in swap)" if held.swapped else "")
            + (" (in no file)" if held.detached else "")
            + (" (names and inodes)" if held.inodes else ""),
            _size(held.bytes),
            _size(held.share_bytes),
        )
        for held in answer.classes
    ]
    print_table(("POOL", "SHARED BY", "OWNER", "BYTES", "SHARE"), classes, texts=3)


def users(answer: FileUsers) -> None:
    say(
        f"{answer.path} on pool {answer.pool}: resident {_size(answer.resident_bytes)},"
        f" of this unclaimed {_size(answer.unclaimed_bytes)}"
    )
    rows = [(line.tenant, _size(line.used_bytes), _size(line.share_bytes)) for line in answer.tenants]
    print_table(("TENANT", "USED", "SHARE"), rows, texts=1)


def unclaimed(answer: Unclaimed) -> None:
    say(f"unclaimed {_size(answer.unclaimed_bytes)} in memory, {_size(answer.spilled_bytes)} spilled to disk")
    rows = [
        (
            file.pool,
            file.path,
            file.last_owner or "-",
            "disk" if file.spilled else "memory, partly in use" if file.used_bytes else "memory",
            _size(file.unclaimed_bytes),
            _size(file.size_bytes),
            f"{file.age_seconds:.0f} s",
        )
        for file in answer.files
    ]
    print_table(("POOL", "FILE", "LAST OWNER", "WHERE", "UNCLAIMED", "SIZE", "FOR"), rows, texts=4)


def what_if_exit(answer: ExitForecast) -> None:
    say(f"if {answer.tenant} exited now, {_size(answer.freed_bytes)} would be nobody's")
    rows = [
        (
            line.tenant,
            _size(line.share_before_bytes),
            _size(line.share_after_bytes),
            _size(line.limit_before_bytes),
            _size(line.limit_after_bytes),
        )
        for line in answer.tenants
    ]
    print_table(("TENANT", "SHARE NOW", "SHARE THEN", "LIMIT NOW", "LIMIT THEN"), rows, texts=1)


def zombies(answer: Zombies) -> None:
    say(f"dying memory cgroups: {answer.dying}, at least {_size(answer.kernel_bytes)} of kernel memory for them")
    groups = [
        (
            group.cgroup,
            "-" if group.dying is None else str(group.dying),
            *(
                ("" if group.exact else "<= ") + _size(size_bytes)
                for size_bytes in (group.shmem_bytes, group.page_cache_bytes, group.swap_bytes)
            ),
        )
        for group in answer.groups
    ]
    print_table(("DYING BELOW", "CGROUPS", "SHARED MEMORY", "PAGE CACHE", "SWAP"), groups, texts=1)
    holders = [
        (
            holder.kind,
            holder.path,
            "\n".join(holder.below),
            "\n".join(f"{user.name} ({user.pid}) {' and '.join(user.how)}, {user.cgroup}" for user in holder.users)
            or "nobody",
            _size(holder.size_bytes),
            "not attached" if holder.held_bytes is None else ("" if holder.exact else "<= ") + _size(holder.held_bytes),
        )
        for holder in answer.holders
    ]
    say("")
    print_table(("HELD BY", "FILE", "BELOW", "USED BY", "SIZE", "HOLDS"), holders, texts=4)
    if answer.unseen_processes:
        say(f"not looked at: {answer.unseen_processes} processes, which hang: what they use is not known")


def policies(answer: Policies) -> None:
    """A column for each policy; what differs from `proportional` in brackets: + pays for others, - others pay."""
    names = list(answer.totals)
    rows = [(line.tenant, *(_beside(line.shares[name]) for name in names)) for line in answer.tenants]
    totals = answer.totals.values()
    rows.append(("(nobody)", *(_size(total.nobody_bytes) for total in totals)))
    rows.append(("(billed)", *(_size(total.billed_bytes) for total in totals)))
    heads = [name.upper() + (" *" if name == answer.active else "") for name in names]
    print_table(("TENANT", *heads), rows, texts=1)
    say(f"resident {_size(answer.pool_resident_bytes)}. In brackets: paid for others (+), paid by others (-).")
    say(f"* is active. Replayed from a trace only (`sharedctl lab`): {', '.join(answer.need_history)}.")


def _beside(share: PolicyShare) -> str:
    more_bytes = share.for_others_bytes - share.by_others_bytes
    size = _size(share.share_bytes)
    return f"{size} ({'+' if more_bytes > 0 else ''}{_size(more_bytes)})" if more_bytes else size


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)


Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class View(Generic[Told]):
    """How the answer to one question is shown."""

    kind: type[Told]
    show: Callable[[Told], None]

    def __call__(self, answer: Answer) -> None:
        self.show(read(self.kind, answer))


VIEWS: dict[str, View[Any]] = {
    "/v1/bills": View(Bills, bills),
    "/v1/caps": View(CapStates, caps),
    "/v1/explain": View(Explanation, explain),
    "/v1/health": View(Health, status),
    "/v1/history": View(UsageHistory, history),
    "/v1/plan": View(WritePlan, plan),
    "/v1/policies": View(Policies, policies),
    "/v1/unclaimed": View(Unclaimed, unclaimed),
    "/v1/users": View(FileUsers, users),
    "/v1/what-if/exit": View(ExitForecast, what_if_exit),
}
"""By the question's path."""
