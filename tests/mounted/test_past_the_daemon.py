"""Tenants at random, also past the daemon: books, files, charges and page tables agree a bounded time later.

They write, read and punch by requests; and through mappings, where nobody is asked, they store, punch (MADV_REMOVE),
have huge pages made (MADV_COLLAPSE) and hold pages that go (vmsplice). They exit, and the daemon is killed. Beside an
oracle that knows what each page holds, and who has used it since it came.
"""

import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sharedfs.linux import huge_pages
from tests.support.deaths import kill_daemon
from tests.support.mount import MountedPool, mounted_pool
from tests.support.tenants import Agent, Tenant, Tenants, tenants_below, wait_until

PAGE = 4096
WINDOW = 512
PAGES = 3 * WINDOW
SIZE = PAGES * PAGE
NAMES, FILES = ("a", "b", "c"), ("x", "y")
PATIENCE = 60.0
COLLAPSES = huge_pages.can_collapse() and huge_pages.page_bytes() == WINDOW * PAGE

_numbers = count()
_SETUP = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
fds, at, pipes = {{}}, {{}}, []
def use(path):
    fds[path] = os.open(path, os.O_RDWR)
    place = libc.mmap(None, {SIZE + WINDOW * PAGE}, 0, 0x22, -1, 0)
    at[path] = -(-place // {WINDOW * PAGE}) * {WINDOW * PAGE}
    assert libc.mmap(at[path], {SIZE}, 3, 0x11, fds[path], 0) == at[path]
"""
_ACTS = {
    "write": "os.pwrite(fds[path], bytes([value]) * {length}, {start})",
    "read": "os.pread(fds[path], {length}, {start})",
    "punch": "assert libc.fallocate(fds[path], 3, {start}, {length}) == 0",
    "store": "for p in range({start}, {start} + {length}, 4096): ctypes.memset(at[path] + p, value, 4096)",
    "remove": f"assert libc.madvise(at[path] + {{start}}, {{length}}, {mmap.MADV_REMOVE}) == 0",
    "collapse": "libc.madvise(at[path] + {start} // 2097152 * 2097152, 2097152, 25)",
    "hold": (
        "pipes.append(os.pipe()); piece = (ctypes.c_size_t * 2)(at[path] + {start}, min({length}, 65536)); "
        "libc.vmsplice(pipes[-1][1], piece, 1, 2)"
    ),
    "let go": "[os.close(end) for ends in pipes for end in ends]; pipes.clear()",
}

acts = st.tuples(
    st.sampled_from([*_ACTS, "write", "store", "store", "remove"]),
    st.sampled_from(NAMES),
    st.sampled_from(FILES),
    st.integers(0, PAGES - 1),
    st.sampled_from([1, 3, 40, WINDOW, PAGES]),
)
others = st.tuples(st.sampled_from(["exit", "exit", "kill the daemon", "wait"]), st.sampled_from(NAMES))


@pytest.fixture(scope="module")
def sparse_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedPool]:
    """Of its own: holes stay holes."""
    with pytest.MonkeyPatch.context() as patch:
        place, name = tmp_path_factory.mktemp("past"), f"sharedfs-test-{os.getpid()}-past"
        patch.setenv("SHAREDFS_RUN_DIR", f"/tmp/sf-{os.getpid()}-past/run")
        patch.setenv("SHAREDFS_STATE_DIR", f"/tmp/sf-{os.getpid()}-past/state")
        options = ("--size", "256M", "--reserve", "0", "--idle", "86400", "--cgroup-parent", f"{name}-pools")
        with mounted_pool(place / "mnt", name, *options) as mounted:
            yield mounted


class World:
    """Two files, three tenants that map both, and what the oracle knows of each page."""

    def __init__(self, pool: MountedPool, tenants: Tenants) -> None:
        self.pool = pool
        self._tenants = tenants
        self._directory = pool.path / f"world-{next(_numbers)}"
        self._directory.mkdir(mode=0o777)
        self.paths = {name: self._directory / name for name in FILES}
        for path in self.paths.values():
            path.touch()
            os.truncate(path, SIZE)
        self.live: dict[str, tuple[Tenant, Agent]] = {}
        self.content: dict[tuple[str, int], int] = {}
        self.users: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._removed: set[tuple[str, int]] = set()  # pages that the daemon does not know to be gone, as far as we know
        self.is_exact = True
        """Whether users are known to the page. Not when a huge page was made: one has whoever comes near use all of it.

        Nor when a page was put where another one went that nobody missed yet: it is taken for the same.
        """
        for name in NAMES:
            self._enter(name)

    def _enter(self, name: str) -> None:
        tenant = self._tenants.make(f"{name}-{next(_numbers)}")
        agent = tenant.agent()
        agent.do(_SETUP + "".join(f"use('{path}')\n" for path in self.paths.values()))
        self.live[name] = tenant, agent

    def act(self, what: str, name: str, file: str, first: int, length: int) -> None:
        if what == "collapse":
            if not COLLAPSES:
                return
            self.wait()  # it takes pages out of others' page tables: who was not seen there is not known to use them
        length = min(length, PAGES - first)
        value = 1 + next(_numbers) % 255
        statements = _ACTS[what].format(start=first * PAGE, length=length * PAGE)
        self.live[name][1].do(f"path, value = '{self.paths[file]}', {value}\n{statements}")
        self._note(what, name, [(file, page) for page in range(first, first + length)], value)

    def _note(self, what: str, name: str, pages: list[tuple[str, int]], value: int) -> None:
        if what in ("write", "store", "hold") and not self._removed.isdisjoint(pages):
            self.is_exact = False
        match what:
            case "write" | "store":
                self.content |= dict.fromkeys(pages, value)
                for page in pages:
                    self.users[page].add(name)
            case "read":
                for page in pages:
                    if page in self.content:
                        self.users[page].add(name)
            case "punch" | "remove":
                self._removed.update(pages if what == "remove" else ())
                for page in pages:
                    self.content.pop(page, None)
                    self.users.pop(page, None)
            case "hold":  # whose holes it fills, and what the kernel maps around, is not modelled
                for page in pages[:16]:
                    self.content.setdefault(page, 0)
                    self.users[page].add(name)
                self.is_exact = False
            case "collapse":
                self.is_exact = False

    def exit(self, name: str) -> None:
        self.live.pop(name)[0].exit()
        for users in self.users.values():
            users.discard(name)
        self.is_exact = False  # what it brought is moved, in huge pages
        self._enter(name)

    def wait(self) -> None:
        """Until page tables were looked at, and pages missed that are gone."""
        self.pool.wait_for_scan()
        self.pool.check_conservation()
        self._removed.clear()

    def check(self) -> None:
        """All that is known agrees, in a bounded time."""
        for name, (tenant, _) in self.live.items():
            expected = PAGE * sum(name in users for users in self.users.values())
            wait_until(lambda: self._uses(tenant, expected), f"{name} uses {expected} bytes", PATIENCE)  # noqa: B023
        # What lies among holes of a file in use cannot become the pool's again before the file is left.
        wait_until(
            lambda: {one["books"] for one in self.pool.differences()} <= {"charged to the pool"},
            "an audit finds nothing else",
            PATIENCE,
        )
        self.pool.check_conservation()
        for file, path in self.paths.items():
            there = path.read_bytes()
            for page in range(PAGES):
                value = self.content.get((file, page), 0)
                assert there[page * PAGE : (page + 1) * PAGE] == bytes([value]) * PAGE, (file, page)

    def _uses(self, tenant: Tenant, expected: int) -> bool:
        used = self.pool.used(tenant)
        return used == expected if self.is_exact else used >= expected

    def end(self) -> None:
        """Nobody uses the files any more: nothing differs at all."""
        for tenant, _ in self.live.values():
            tenant.exit()
        self.pool.check_audit(PATIENCE)
        for path in self.paths.values():
            path.unlink()


@contextmanager
def world_of(pool: MountedPool) -> Iterator[World]:
    with tenants_below(f"sharedfs-test-{os.getpid()}-past-{next(_numbers)}") as tenants:
        world = World(pool, tenants)
        yield world
        world.end()


@settings(
    max_examples=8, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(steps=st.lists(acts | acts | acts | acts | others, min_size=8, max_size=25))
def test_whatever_they_do_the_audit_finds_nothing(sparse_pool: MountedPool, steps: list[tuple[object, ...]]) -> None:
    with world_of(sparse_pool) as world:
        for what, name, *where in steps:
            match what:
                case "exit":
                    world.exit(str(name))
                case "kill the daemon":
                    kill_daemon(sparse_pool)
                case "wait":
                    world.wait()
                case _:
                    world.act(str(what), str(name), *where)  # type: ignore[arg-type]
        world.check()
