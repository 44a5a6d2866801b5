"""An operator can name every file: by its bytes, as tables show it, and by way of another mount or a symlink."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.controller import run_sharedctl, running_controller, sharedctl
from tests.support.mount import MountedPool, bound
from tests.support.tenants import Tenant, Tenants

PAGE = 4096
BUDGET = 64 << 20
ODD = [
    b"new\nline",
    b"esc\x1b[31mred\x07",
    b"non\xff\xfeutf8",
    b"tab\tq'\"\\",
    b"\r\rover",
    b"\xe2\x80\xae rtl",
    b"\xed\xa0\x80surrogate",
    b"-rf",
    b"%FF",
    b" ",
    b"\x7f\x01",
    b"\xc2\x85",
]


@pytest.fixture
def maker(pool: MountedPool, tenants: Tenants) -> Iterator[Tenant]:
    tenant = tenants.make("maker", BUDGET)
    with running_controller():
        yield tenant
        tenant.end_processes()


def make(maker: Tenant, pool: MountedPool, *names: bytes) -> None:
    for name in names:
        path = os.fsencode(pool.path) + b"/" + name
        maker.do(f"with open({path!r}, 'wb') as file: file.write(b'x' * {PAGE})")


def users(pool: MountedPool, name: str) -> list[str]:
    return [user["tenant"] for user in sharedctl("users", f"{pool.path}/{name}")["tenants"]]


def test_every_file_can_be_named_by_its_bytes_and_as_it_is_shown(
    pool: MountedPool, maker: Tenant, tenants: Tenants
) -> None:
    heir = tenants.make("heir", BUDGET)
    maker.do(f"os.mkdir({os.fsencode(pool.path) + b'/dir'!r} + b'\\n\\xff')")
    inside = b"dir\n\xff/f\n"
    make(maker, pool, *ODD, inside)
    shown = [file["path"] for file in sharedctl("explain", maker.path)["files"]]
    assert len(set(shown)) == len(ODD) + 1
    assert all(name.isprintable() for name in shown)
    for name in shown:
        assert maker.path in users(pool, name)
    for name in (*ODD, inside):
        assert maker.path in users(pool, os.fsdecode(name))
    told = sharedctl("claim", os.fsdecode(os.fsencode(pool.path) + b"/dir\n\xff"), heir.path, "--recursive")
    assert (told["files"], told["path"]) == (1, f"{pool.path}/dir\\n\\xff")
    assert sharedctl("claim", f"{pool.path}/{shown[0]}", heir.path)["files"] == 1


def test_a_name_that_looks_like_another_one_is_taken_for_neither(pool: MountedPool, maker: Tenant) -> None:
    """A tenant gives its file the name by which another's is shown: nobody claims the wrong one."""
    make(maker, pool, b"a\x1b", b"a\\x1b")
    for command in (("users",), ("claim",)):
        done = run_sharedctl(command[0], f"{pool.path}/a\\x1b", *(("nobody",) if command[0] == "claim" else ()))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "each backslash doubled" in done.stderr
    assert maker.path in users(pool, "a\x1b")
    assert maker.path in users(pool, "a\\\\x1b")


def test_a_file_by_way_of_another_mount_or_a_symlink(pool: MountedPool, maker: Tenant, run_dir: Path) -> None:
    maker.do(f"os.mkdir('{pool.path}/sub')")
    make(maker, pool, b"sub/f")
    (run_dir / "link").symlink_to("there/sub")
    (run_dir / "there").symlink_to(pool.path)
    (run_dir / "round").symlink_to("round")
    with bound(pool.path / "sub", run_dir / "bound"):
        for path in (run_dir / "bound" / "f", run_dir / "link" / "f", run_dir / "there" / "sub" / "f"):
            told = sharedctl("users", str(path))
            assert [user["tenant"] for user in told["tenants"]] == [maker.path], path
    for path in (run_dir / "round" / "f", run_dir / "none" / "f"):
        refused = run_sharedctl("users", str(path))
        assert refused.returncode == 2
        assert f"{path} is on no pool" in refused.stderr
    # A link on the pool is not followed: a tenant made it.
    maker.do(f"os.symlink('sub', '{pool.path}/inner')")
    assert run_sharedctl("users", f"{pool.path}/inner/f").returncode == 2


def test_names_that_are_none_are_told_in_a_line(pool: MountedPool, maker: Tenant) -> None:
    make(maker, pool, b"f")
    file, own = str(pool.path / "f"), pool.status().pool_cgroup
    for arguments, why in (
        (("users", ""), "the path is empty"),
        (("claim", file, ""), "the tenant is empty: name a cgroup"),
        (("explain", ""), "the tenant is empty: name a cgroup"),
        (("explain", "/no\x1b\udcff"), "/no%1B%FF"),
        (("claim", file, own), f"{own} is the own cgroup of pool {pool.name}"),
    ):
        done = run_sharedctl(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.count("\n") == 1, done.stderr
        assert why in done.stderr
