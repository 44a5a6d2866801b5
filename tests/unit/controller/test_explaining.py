"""A tenant's share by file and class, from pages of what pools say."""

from controller.policies.registry import DEFAULT, policy_named
from controller.service.explaining import PoolFiles, explain
from sharedfs.api.types import ClassHolding, FileHoldings, FilesOfTenant, TenantRef
from sharedfs.linux.cgroups import CgroupRef

A, B = CgroupRef("/a", 1), CgroupRef("/b", 2)
TENANTS = tuple(TenantRef(id=tenant.inode, path=tenant.path, inode=tenant.inode) for tenant in (A, B))
PROPORTIONAL = policy_named(DEFAULT)


def file(inode: int, path: str, *held: tuple[int, tuple[int, ...]], opened: tuple[int, ...] = ()) -> FileHoldings:
    rows = tuple(
        ClassHolding(owner=payers[0], payers=payers, mapped=payers[:1], foreign=False, bytes=held_bytes)
        for held_bytes, payers in held
    )
    total = sum(held_bytes for held_bytes, _ in held)
    return FileHoldings(path=path, inode=inode, size_bytes=total, resident_bytes=total, classes=rows, opened=opened)


def told(*pages: tuple[FileHoldings, ...], pool: str = "p") -> PoolFiles:
    files = PoolFiles(pool, A, frozenset())
    for page in pages:
        files.add(FilesOfTenant(tenants=TENANTS, files=page))
    return files


def test_two_deleted_files_of_one_name_are_two_files() -> None:
    """They had one line, and the bytes of the one that came last."""
    found = explain(
        A, [told((file(3, "x (deleted)", (1000, (1,))),), (file(4, "x (deleted)", (500, (1,))),))], PROPORTIONAL, 10
    )
    assert [(line.path, line.share_bytes) for line in found.files] == [("x (deleted)", 1000), ("x (deleted)", 500)]
    assert (found.share_bytes, found.used_bytes) == (1500, 1500)


def test_the_parts_of_several_pools_and_pages_sum_up_to_the_byte() -> None:
    first = told((file(1, "one", (4097, (1, 2)), (7, (2,))),), (file(2, "two", (4098, (1, 2)), (5, (1,))),))
    other = told((file(1, "one", (3, (1, 2)), opened=(1,)),), pool="q")
    found = explain(A, [first, other], PROPORTIONAL, 2)
    assert found.share_bytes == (4097 + 4098 + 1) // 2 + 5 + 2
    assert found.used_bytes == 4097 + 4098 + 5 + 3
    assert sum(held.share_bytes for held in found.classes) == found.share_bytes
    assert sum(line.share_bytes for line in found.files) + found.others_share_bytes == found.share_bytes
    assert [(line.pool, line.path) for line in found.files] == [("p", "two"), ("p", "one")]
    assert found.others == 1
    (opened,) = explain(A, [other], PROPORTIONAL, 1).files
    assert (opened.opened_bytes, opened.mapped_bytes, opened.touched_bytes) == (3, 0, 0)
