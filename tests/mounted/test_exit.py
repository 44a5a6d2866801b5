"""I4: a tenant's exit makes its pages those of the others, or nobody's; and a cgroup's name is not the cgroup."""

import pytest

from tests.support.mount import MountedPool
from tests.support.tenants import Tenant, Tenants, wait_until

PAGE = 4096
PAGES = 64


@pytest.fixture
def sharers(pool: MountedPool, tenants: Tenants) -> tuple[Tenant, Tenant]:
    """An owner that wrote a file and a sharer that maps all of it."""
    owner, sharer = tenants.make("owner"), tenants.make("sharer")
    owner.do(f"fd = os.open('{pool.path}/f', os.O_RDWR | os.O_CREAT, 0o666); os.write(fd, b'x' * {PAGES * PAGE})")
    sharer.do(
        f"fd = os.open('{pool.path}/f', os.O_RDONLY); m = mmap.mmap(fd, {PAGES * PAGE}, prot=mmap.PROT_READ)\n"
        f"result = sum(m[page * {PAGE}] for page in range({PAGES}))"
    )
    wait_until(lambda: pool.mapped(sharer) == PAGES * PAGE, "the sharer maps all")
    return owner, sharer


def users_of_all_pages(pool: MountedPool) -> set[str]:
    """The paths of those who use the pool's pages, all of them alike."""
    holdings = pool.check_conservation()
    names = {tenant.id: tenant.path for tenant in holdings.tenants}
    (held,) = holdings.classes
    assert held.bytes == PAGES * PAGE
    return {names[user] for user in held.payers}


def test_a_sharer_exits(pool: MountedPool, sharers: tuple[Tenant, Tenant]) -> None:
    owner, sharer = sharers
    assert users_of_all_pages(pool) == {owner.path, sharer.path}
    sharer.exit()
    wait_until(lambda: not pool.knows(sharer), "the exit is seen")
    assert users_of_all_pages(pool) == {owner.path}


def test_the_owner_exits(pool: MountedPool, sharers: tuple[Tenant, Tenant]) -> None:
    owner, sharer = sharers
    owner.exit()
    wait_until(lambda: not pool.knows(owner), "the exit is seen")
    assert users_of_all_pages(pool) == {sharer.path}
    (held,) = pool.holdings().classes
    assert held.owner == 0
    assert sharer.do("result = m[5]") == ord("x"), "the memory outlives who allocated it"


def test_all_exit_and_a_newcomer_takes_over(
    pool: MountedPool, tenants: Tenants, sharers: tuple[Tenant, Tenant]
) -> None:
    for tenant in sharers:
        tenant.exit()
    wait_until(lambda: not pool.holdings().tenants, "both exits are seen")
    assert users_of_all_pages(pool) == set(), "unclaimed, and still resident"
    newcomer = tenants.make("newcomer")
    newcomer.do(f"result = len(open('{pool.path}/f', 'rb').read())")
    assert users_of_all_pages(pool) == {newcomer.path}


def test_a_cgroup_made_again_under_the_same_name_owes_nothing(pool: MountedPool, tenants: Tenants) -> None:
    first = tenants.make("job")
    first.do(f"open('{pool.path}/f', 'wb').write(b'x' * {PAGES * PAGE})")
    first.exit()
    second = tenants.make("job")
    second.do(f"result = os.stat('{pool.path}/f').st_size")
    wait_until(lambda: users_of_all_pages(pool) == set(), "the first job's pages are nobody's")
    second.do(f"open('{pool.path}/f', 'rb').read()")
    assert users_of_all_pages(pool) == {second.path}


def test_a_process_that_dies_with_its_mapping(pool: MountedPool, sharers: tuple[Tenant, Tenant]) -> None:
    """Its cgroup lives on, so it goes on paying for what it used; but it maps no more."""
    _, sharer = sharers
    sharer.end_processes()
    wait_until(lambda: pool.mapped(sharer) == 0, "the mapping is gone")
    assert pool.used(sharer) == PAGES * PAGE
    pool.check_conservation()
