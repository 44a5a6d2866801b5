"""What a tenant's share is made of, by file and by sharing class, from what pools say page by page. Pure.

A share is rounded once, for the whole class, and laid out over the class's files by largest remainder: so files,
classes and bill agree to the byte.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from itertools import chain

from controller.api.types import ExplainedClass, ExplainedFile, Explanation
from controller.billing.holdings import Beside, SharingClass, cgroup_of, class_beside, read_classes, without
from controller.policies.policy import Policy
from controller.policies.split import apportion, by_path
from sharedfs.api.types import FileHoldings, FilesOfTenant
from sharedfs.linux.cgroups import CgroupRef

_SHOWN = {Beside.DETACHED: "(in no file any more)", Beside.INODES: "(names and inodes)"}

_File = tuple[str, int]
"""Its path and its inode number: deleted files may have had one name."""


class PoolFiles:
    """The files of one pool of which `tenant` pays for pages. Tenants that are `gone` pay for nothing."""

    def __init__(self, pool: str, tenant: CgroupRef, gone: Set[CgroupRef]) -> None:
        self.pool = pool
        self._tenant = tenant
        self._gone = gone
        self.files: dict[_File, Counter[SharingClass]] = {}
        self.opened: set[_File] = set()
        self.by_range: set[_File] = set()
        self.classes: defaultdict[SharingClass, dict[_File, int]] = defaultdict(dict)

    def add(self, page: FilesOfTenant) -> None:
        """O(files and their classes), whatever the number of tenants that the page lists."""
        for what, held_bytes in ((Beside.DETACHED, page.detached_bytes), (Beside.INODES, page.inode_bytes)):
            if held_bytes:
                held, place = class_beside(self.pool, what, self._tenant), (_SHOWN[what], 0)
                self.classes[held] = {place: held_bytes}
                self.files[place] = Counter({held: held_bytes})
        tenants = {tenant.id: tenant for tenant in page.tenants}
        own = {tenant.id for tenant in page.tenants if cgroup_of(tenant) == self._tenant}
        for file in page.files:
            place = file.path, file.inode
            named = [tenants[number] for number in _named_in(file) if number in tenants]
            if not own.isdisjoint(file.opened):
                self.opened.add(place)
            if not own.isdisjoint(file.by_range):
                self.by_range.add(place)
            for held, held_bytes in without(read_classes(self.pool, named, file.classes), self._gone).items():
                if self._tenant in held.payers and held_bytes:
                    self.classes[held][place] = held_bytes
                    self.files.setdefault(place, Counter())[held] = held_bytes


def explain(tenant: CgroupRef, pools: Iterable[PoolFiles], policy: Policy, most_files: int) -> Explanation:
    """The files with the largest shares, at most `most_files`, and all classes. O(files log files)."""
    lines: list[tuple[int, str, _File, PoolFiles]] = []
    classes: list[ExplainedClass] = []
    for told in pools:
        file_shares: Counter[_File] = Counter()
        for held, parts in told.classes.items():
            held_bytes = sum(parts.values())
            share_bytes = policy.charge(held, held_bytes).get(tenant, 0)
            file_shares.update(apportion(share_bytes, parts))
            classes.append(_explain_class(held, held_bytes, share_bytes))
        lines += ((-file_shares[place], told.pool, place, told) for place in told.files)
    lines.sort(key=lambda line: line[:3])
    listed, others = lines[:most_files], lines[most_files:]
    return Explanation(
        tenant=tenant.path,
        share_bytes=sum(held.share_bytes for held in classes),
        used_bytes=sum(held.bytes for held in classes),
        files=tuple(_explain_file(tenant, told, place, -less) for less, _, place, told in listed),
        others=len(others),
        others_share_bytes=-sum(less for less, *_ in others),
        classes=tuple(sorted(classes, key=lambda held: -held.bytes)),
    )


def _paths(cgroups: Iterable[CgroupRef]) -> tuple[str, ...]:
    return tuple(cgroup.path for cgroup in sorted(cgroups, key=by_path))


def _named_in(file: FileHoldings) -> set[int]:
    return set(chain.from_iterable((row.owner, *row.payers, *row.mapped) for row in file.classes))


def _explain_class(held: SharingClass, held_bytes: int, share_bytes: int) -> ExplainedClass:
    return ExplainedClass(
        pool=held.pool,
        payers=_paths(held.payers),
        owner=None if held.owner is None else held.owner.path,
        mapped=_paths(held.mapped),
        foreign=held.foreign,
        swapped=held.swapped,
        detached=held.beside is Beside.DETACHED,
        inodes=held.beside is Beside.INODES,
        bytes=held_bytes,
        share_bytes=share_bytes,
    )


def _explain_file(tenant: CgroupRef, told: PoolFiles, place: _File, share_bytes: int) -> ExplainedFile:
    """An open handle for fast reading says that all pages may be used, and hides what page tables say."""
    used, is_opened = told.files[place], place in told.opened
    mapped_bytes = sum(held_bytes for held, held_bytes in used.items() if tenant in held.mapped)
    return ExplainedFile(
        pool=told.pool,
        path=place[0],
        used_bytes=used.total(),
        opened_bytes=mapped_bytes if is_opened else 0,
        mapped_bytes=0 if is_opened else mapped_bytes,
        touched_bytes=used.total() - mapped_bytes,
        share_bytes=share_bytes,
        by_range=place in told.by_range,
    )
