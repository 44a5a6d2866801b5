"""From a snapshot of bills and limits to what the API says. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Set

from controller.api.types import (
    Bills,
    ExitForecast,
    FileUser,
    FileUsers,
    GroupBill,
    Handover,
    PlannedWrite,
    Policies,
    PolicyShare,
    PolicyTotal,
    SurvivorBill,
    TenantBill,
    TenantPolicies,
    Unclaimed,
    UnclaimedLine,
    WritePlan,
)
from controller.billing.bill import TenantShare, make_bill
from controller.billing.holdings import read_classes, without
from controller.limits.types import KernelLimits
from controller.policies.designated import Designated
from controller.policies.policy import Policy
from controller.policies.registry import DEFAULT, LIVE, POLICIES, policy_named
from controller.policies.split import by_path
from controller.service.snapshot import Snapshot
from controller.settlement.settle import Position
from controller.settlement.what_if import Exit
from sharedfs.api.types import HandedOver, UnclaimedPage, UsersOfFile
from sharedfs.common.errors import BrokenInvariant
from sharedfs.linux.cgroups import CgroupRef, chain


def tell_bills(snapshot: Snapshot, live: Set[CgroupRef], names: Mapping[CgroupRef, str]) -> Bills:
    """The bill, tenants by path. `live` are those with processes, `names` what people call them."""
    bill = snapshot.bill
    places = {cgroup.path: position for cgroup, position in snapshot.positions.items()}
    return Bills(
        pools=snapshot.pool_answers,
        pool_resident_bytes=bill.pool_resident_bytes,
        unclaimed_bytes=bill.unclaimed_bytes,
        foreign_bytes=bill.foreign_bytes,
        swapped_bytes=bill.swapped_bytes,
        detached_bytes=bill.detached_bytes,
        inode_bytes=bill.inode_bytes,
        debt_bytes=sum(position.debt_bytes(position.account.limits) for position in snapshot.positions.values()),
        borne_bytes=sum(snapshot.planned.borne.values()),
        groups=tuple(
            _group(snapshot, snapshot.positions[cgroup])
            for cgroup in sorted(snapshot.positions, key=by_path)
            if cgroup not in bill.tenants
        ),
        tenants=tuple(
            _line(snapshot, places, cgroup, cgroup in live, names.get(cgroup))
            for cgroup in sorted(bill.tenants, key=by_path)
        ),
    )


def _line(
    snapshot: Snapshot, places: Mapping[str, Position], cgroup: CgroupRef, live: bool, name: str | None
) -> TenantBill:
    share = snapshot.bill.tenants[cgroup]
    position = snapshot.positions.get(cgroup)
    bounds = [places[path] for path in chain(cgroup.path) if path in places]
    limits = {
        bound.cgroup.path: limit for bound in bounds if (limit := bound.account.limits.enforced_bytes) is not None
    }
    bound_by = min(limits, key=lambda path: limits[path], default=None)
    return TenantBill(
        tenant=cgroup.path,
        name=name,
        state="live" if live else "empty",
        share_bytes=share.share_bytes,
        swapped_bytes=share.swapped_bytes,
        detached_bytes=share.detached_bytes,
        inode_bytes=share.inode_bytes,
        used_bytes=share.used_bytes,
        budget_bytes=min((budget for bound in bounds if (budget := bound.budget_bytes) is not None), default=None),
        limit_bytes=None if bound_by is None else limits[bound_by],
        bound_by=bound_by,
        report_only=position is not None and position.report_only,
        kernel_usage_bytes=0 if position is None else position.account.usage_bytes,
        over_bytes=0 if position is None else position.over_bytes,
        debt_bytes=0 if position is None else position.debt_bytes(position.account.limits),
        debt_age_seconds=None if position is None else _debt_age(snapshot, position),
        borne_bytes=snapshot.planned.borne.get(cgroup, 0),
        inherited_bytes=_inherited(snapshot, cgroup),
        swap_budget_bytes=None if position is None else position.found.swap_bytes,
        swap_limit_bytes=None if position is None else position.account.limits.swap_bytes,
        swap_debt_bytes=0 if position is None else position.swap_debt_bytes(position.account.limits),
    )


def _inherited(snapshot: Snapshot, cgroup: CgroupRef) -> int:
    position = snapshot.planned.positions.get(cgroup) or snapshot.positions.get(cgroup)
    return 0 if position is None else max(0, min(position.inherited_bytes, position.due_bytes))


def _debt_age(snapshot: Snapshot, position: Position) -> float | None:
    if not position.debt_bytes(position.account.limits):
        return None
    debts = (debt.since_seconds for debt in snapshot.planned.debts if debt.cgroup == position.cgroup)
    return round(snapshot.taken_seconds - next(debts, snapshot.taken_seconds), 3)


def _group(snapshot: Snapshot, position: Position) -> GroupBill:
    return GroupBill(
        cgroup=position.cgroup.path,
        due_bytes=position.due_bytes,
        budget_bytes=position.budget_bytes,
        limit_bytes=position.account.limits.enforced_bytes,
        kernel_usage_bytes=position.account.usage_bytes,
        debt_bytes=position.debt_bytes(position.account.limits),
        debt_age_seconds=_debt_age(snapshot, position),
        inherited_bytes=_inherited(snapshot, position.cgroup),
        swap_due_bytes=position.swap_due_bytes,
        swap_budget_bytes=position.found.swap_bytes,
        swap_limit_bytes=position.account.limits.swap_bytes,
        swap_debt_bytes=position.swap_debt_bytes(position.account.limits),
    )


def tell_plan(snapshot: Snapshot | None, limits: KernelLimits, *, dry_run: bool) -> WritePlan:
    """The writes that the last settlement ordered, and those that it put off."""
    if snapshot is None:
        return WritePlan(dry_run=dry_run, writes=())
    states = [(order, "would" if dry_run else "ordered") for order in snapshot.planned.ordered]
    states += [(order, "would" if dry_run else "waits") for order in snapshot.planned.put_off]
    return WritePlan(
        dry_run=dry_run,
        writes=tuple(
            PlannedWrite(
                cgroup=order.cgroup.path,
                file=str(limits.hierarchy.directory(order.cgroup.path) / write.file),
                now=write.before,
                text=write.text,
                state=state,  # type: ignore[arg-type] # one of these words
            )
            for order, state in sorted(states, key=lambda entry: by_path(entry[0].cgroup))
            for write in limits.writes(order)
        ),
    )


def tell_policies(snapshot: Snapshot, active: Policy, payer: CgroupRef | None) -> Policies:
    """The snapshot's books under every policy that they are enough for; `designated` only when there is a `payer`."""
    names = [name for name in LIVE if payer is not None or name != Designated.name]
    tenants = snapshot.bill.tenants
    bills = {name: make_bill(snapshot.books, tenants, policy_named(name, payer)) for name in names}
    even = bills[DEFAULT].tenants
    totals = {}
    for name, bill in bills.items():
        billed_bytes = sum(line.share_bytes for line in bill.tenants.values())
        totals[name] = PolicyTotal(
            billed_bytes=billed_bytes,
            nobody_bytes=max(0, bill.pool_resident_bytes - billed_bytes),
            conserves=policy_named(name).conserves,
        )
    listed = sorted({cgroup for bill in bills.values() for cgroup in bill.tenants}, key=by_path)
    nothing = TenantShare()
    return Policies(
        active=active.name,
        pool_resident_bytes=snapshot.bill.pool_resident_bytes,
        totals=totals,
        tenants=tuple(
            TenantPolicies(
                tenant=cgroup.path,
                shares={
                    name: _beside(bill.tenants.get(cgroup, nothing), even.get(cgroup, nothing))
                    for name, bill in bills.items()
                },
            )
            for cgroup in listed
        ),
        need_history=tuple(name for name in POLICIES if name not in LIVE),
    )


def _beside(line: TenantShare, even: TenantShare) -> PolicyShare:
    more_bytes = line.share_bytes - even.share_bytes
    return PolicyShare(
        share_bytes=line.share_bytes, for_others_bytes=max(0, more_bytes), by_others_bytes=max(0, -more_bytes)
    )


def tell_exit(tenant: CgroupRef, forecast: Exit) -> ExitForecast:
    return ExitForecast(
        tenant=tenant.path,
        freed_bytes=forecast.freed_bytes,
        tenants=tuple(
            SurvivorBill(
                tenant=survivor.cgroup.path,
                share_before_bytes=survivor.share_before_bytes,
                share_after_bytes=survivor.share_after_bytes,
                limit_before_bytes=survivor.limit_before_bytes,
                limit_after_bytes=survivor.limit_after_bytes,
            )
            for survivor in forecast.survivors
        ),
    )


def tell_unclaimed(answers: Iterable[tuple[str, UnclaimedPage]]) -> Unclaimed:
    """What nobody uses, of all pools, the longest unclaimed first."""
    files = [
        UnclaimedLine(pool=pool, **file.model_dump(exclude={"inode"}))
        for pool, answer in answers
        for file in answer.files
    ]
    return Unclaimed(
        unclaimed_bytes=sum(file.unclaimed_bytes for file in files if not file.spilled),
        spilled_bytes=sum(file.unclaimed_bytes for file in files if file.spilled),
        files=tuple(sorted(files, key=lambda file: (-file.age_seconds, file.pool, file.path))),
    )


def tell_handover(snapshot: Snapshot, pool: str, path: str, done: HandedOver) -> Handover:
    """With what the new owner has to pay by the settlement after it."""
    tenant = None if done.tenant is None else snapshot.tenant(done.tenant)
    position = None if tenant is None else snapshot.positions.get(tenant)
    return Handover(
        pool=pool,
        path=path,
        **done.model_dump(),
        share_bytes=0 if tenant is None else snapshot.bill.tenants[tenant].share_bytes,
        debt_bytes=0 if position is None else position.debt_bytes(position.account.limits),
    )


def tell_users(pool: str, answer: UsersOfFile, gone: Set[CgroupRef], policy: Policy) -> FileUsers:
    """Who shares a file, the largest share first. Raises BrokenInvariant when its classes do not add up (I1).

    Split on the file's own bytes: beside `explain`, which rounds a whole class, a share may be a byte off.
    """
    file = answer.file
    books = without(read_classes(pool, answer.tenants, file.classes), gone)
    if sum(books.values()) != file.resident_bytes:
        raise BrokenInvariant(f"I1: pool {pool}: the classes of {file.path} are not what is resident of it: {file}")
    used: Counter[CgroupRef] = Counter()
    share: Counter[CgroupRef] = Counter()
    for held, held_bytes in books.items():
        used.update(dict.fromkeys(held.payers, held_bytes))
        share.update(policy.charge(held, held_bytes))
    return FileUsers(
        pool=pool,
        path=file.path,
        resident_bytes=file.resident_bytes,
        unclaimed_bytes=file.resident_bytes - share.total(),
        tenants=tuple(
            FileUser(tenant=cgroup.path, used_bytes=used[cgroup], share_bytes=share[cgroup])
            for cgroup in sorted(used, key=lambda cgroup: (-share[cgroup], by_path(cgroup)))
        ),
    )
