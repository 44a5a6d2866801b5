"""The policies that charge one group for a page, each as the article tells it."""

import pytest

from controller.policies.designated import Designated
from controller.policies.evict import Evict
from controller.policies.first_touch import FirstTouch
from controller.policies.hybrid import Hybrid
from controller.policies.manual_reclaim import ManualReclaim
from controller.policies.page_state import Kind, Place
from controller.policies.recharge_deferred import RechargeDeferred
from controller.policies.recharge_mapped import RechargeMapped
from controller.policies.refuse_removal import RefuseRemoval
from controller.policies.reparent import Reparent
from sharedfs.linux.cgroups import CgroupRef
from tests.support.pages import PARENT, ROOT, A, B, C, Scene


def shared_by_b_after_a(scene: Scene) -> Scene:
    scene.allocate(A)
    scene.touch(B)
    return scene


# -- first_touch


def test_first_touch_charges_the_original_owner_and_the_others_use_it_for_free() -> None:
    """When memory is shared with another group, only the one that touched it first is charged for all of it."""
    scene = shared_by_b_after_a(Scene(FirstTouch()))
    scene.map(C)
    assert scene.bill() == {A: 4}


def test_first_touch_leaves_a_zombie_that_lives_until_the_memory_goes() -> None:
    """All users are outside of the group, and it cannot be deleted: it is still responsible for the memory."""
    scene = shared_by_b_after_a(Scene(FirstTouch()))
    scene.exit(A)
    scene.touch(B)
    assert (scene.bill(), scene.zombie_pages(A)) == ({A: 4}, 4)
    scene.free()
    assert (scene.bill(), scene.zombie_pages(A)) == ({}, 0)


def test_one_byte_on_tmpfs_is_enough_for_a_zombie() -> None:
    """Writing a byte to a tmpfs file nails down a page until the file is removed or truncated."""
    scene = Scene(FirstTouch(), pages=1)
    scene.allocate(A)
    scene.exit(A)
    assert scene.zombie_pages(A) == 1


# -- refuse_removal


def test_refused_groups_pile_up() -> None:
    """The kernel would refuse to remove a group with pages, and users make new ones until the machine is full."""
    held = 0
    for number in range(1, 6):
        scene, group = Scene(RefuseRemoval(), pages=1), CgroupRef(f"/tenants/{number}", number)
        scene.allocate(group)
        scene.exit(group)
        held += scene.zombie_pages(group)
        assert scene.bill() == {group: 1}
    assert held == 5


# -- manual_reclaim


def test_forced_reclaim_does_not_help_with_what_cannot_be_reclaimed() -> None:
    """`memory.reclaim` does not work if the memory is not reclaimable."""
    scene = shared_by_b_after_a(Scene(ManualReclaim(), kind=Kind.PINNED))
    assert scene.exit(A) == 4
    assert (scene.count(Place.RESIDENT), scene.zombie_pages(A)) == (4, 4)


def test_forced_reclaim_swaps_shared_pages_out_and_the_zombie_stays_until_they_are_back() -> None:
    """Pages pushed to swap make it worse: the zombie cannot go without first swapping them back in."""
    scene = shared_by_b_after_a(Scene(ManualReclaim()))
    scene.exit(A)
    assert (scene.count(Place.SWAPPED), scene.zombie_pages(A), scene.bill()) == (4, 4, {})
    scene.touch(B, range(3))
    assert (scene.count(Place.SWAPPED), scene.zombie_pages(A), scene.bill()) == (1, 1, {B: 3})


def test_forced_reclaim_drops_page_cache_which_is_read_again_by_who_needs_it() -> None:
    """What can be reclaimed is, and comes back on the books of the one that reads it."""
    scene = shared_by_b_after_a(Scene(ManualReclaim(), kind=Kind.CACHE))
    scene.exit(A)
    assert (scene.count(Place.EVICTED), scene.zombie_pages(A)) == (4, 0)
    scene.touch(C)
    assert scene.bill() == {C: 4}


# -- reparent


def test_reparenting_hides_the_memory_in_the_parent_and_can_reach_the_root() -> None:
    """The parent does not actually own the memory, and it can end up in the root group."""
    scene = shared_by_b_after_a(Scene(Reparent()))
    assert scene.exit(A) == 4
    assert (scene.bill(), scene.zombie_pages(A)) == ({PARENT: 4}, 0)
    scene.exit(PARENT)
    assert scene.bill() == {ROOT: 4}


def test_reparenting_takes_along_what_is_in_swap() -> None:
    """Swapped pages keep references to the zombie too, and are reparented as needed."""
    scene = shared_by_b_after_a(Scene(Reparent()))
    scene.swap()
    scene.exit(A)
    assert scene.zombie_pages(A) == 0
    scene.touch(B)
    assert scene.bill() == {PARENT: 4}


# -- recharge_mapped


def test_a_group_that_has_the_page_mapped_is_charged_for_what_it_used_hours_ago() -> None:
    """Re-charging to a mapper can charge a group for memory that it used long ago, all at once."""
    scene = Scene(RechargeMapped(), pages=100)
    scene.allocate(A)
    scene.map(B)
    for _ in range(10):
        scene.age()
    assert scene.bill() == {A: 100}
    assert scene.exit(A) == 100
    assert scene.bill() == {B: 100}


def test_of_several_mappers_one_is_chosen_and_the_other_rides_on() -> None:
    """If multiple groups have the page mapped, one has to be chosen somehow."""
    scene = Scene(RechargeMapped())
    scene.allocate(A)
    scene.map(C)
    scene.map(B)
    scene.exit(A)
    assert scene.bill() == {B: 4}
    scene.exit(B)
    assert scene.bill() == {C: 4}


def test_what_nobody_maps_any_more_stays_on_the_zombie() -> None:
    """Only a mapping says who is to be charged."""
    scene = Scene(RechargeMapped())
    scene.allocate(A)
    scene.map(B)
    scene.unmap(B)
    scene.exit(A)
    assert scene.zombie_pages(A) == 4


# -- recharge_deferred


def test_deferred_pages_wait_on_the_parent_for_the_next_to_touch_them() -> None:
    """Off the zombie's books, perhaps on the parent's, until somebody accesses the page: that one is charged."""
    scene = shared_by_b_after_a(Scene(RechargeDeferred()))
    scene.exit(A)
    assert (scene.bill(), scene.zombie_pages(A)) == ({PARENT: 4}, 0)
    scene.touch(C, range(1))
    scene.touch(B)
    assert scene.bill() == {C: 1, B: 3}


def test_the_first_to_come_after_an_exit_pays_and_later_ones_do_not() -> None:
    """Charging the first group that accesses the memory once the owner is a zombie is first touch over again."""
    scene = shared_by_b_after_a(Scene(RechargeDeferred()))
    scene.exit(A)
    scene.map(B)
    scene.touch(C)
    assert scene.bill() == {B: 4}


# -- evict


def test_evicted_page_cache_comes_back_charged_to_its_new_user() -> None:
    """Works for page-cache pages: they are faulted in again and charged to the new user."""
    scene = shared_by_b_after_a(Scene(Evict(), kind=Kind.CACHE))
    scene.exit(A)
    assert (scene.bill(), scene.count(Place.EVICTED)) == ({}, 4)
    scene.touch(B)
    assert scene.bill() == {B: 4}


@pytest.mark.parametrize("kind", [Kind.PINNED, Kind.SHMEM])
def test_what_cannot_be_evicted_stays_on_the_zombie(kind: Kind) -> None:
    """It does not work with pinned pages, and shared memory has no file to come back from."""
    scene = shared_by_b_after_a(Scene(Evict(), kind=kind))
    scene.exit(A)
    assert (scene.count(Place.RESIDENT), scene.zombie_pages(A)) == (4, 4)


# -- hybrid


def test_the_worker_does_to_each_page_what_its_type_asks_for() -> None:
    """Unmapped file pages: evicted; unmapped others: deferred; mapped ones: to a mapper; swapped ones: reparented."""
    files = shared_by_b_after_a(Scene(Hybrid(), kind=Kind.CACHE))
    files.map(B, range(1))
    memory = shared_by_b_after_a(Scene(Hybrid()))
    memory.map(C, range(1))
    memory.swap(range(3, 4))
    for scene in (files, memory):
        assert scene.exit(A) == 4
        assert scene.zombie_pages(A) == 0
    assert (files.bill(), files.count(Place.EVICTED)) == ({B: 1}, 3)
    assert memory.bill() == {C: 1, PARENT: 2}
    assert memory.pages[3].place is Place.SWAPPED
    assert memory.pages[3].owner == PARENT
    memory.touch(B)
    assert memory.bill() == {C: 1, B: 2, PARENT: 1}


def test_the_worker_cannot_move_pinned_pages_that_nobody_maps() -> None:
    """Neither evicted nor charged to a mapper: they stay."""
    scene = shared_by_b_after_a(Scene(Hybrid(), kind=Kind.PINNED))
    scene.exit(A)
    assert scene.zombie_pages(A) == 4


# -- designated


def test_the_designated_group_pays_for_all_and_is_the_zombie_in_the_end() -> None:
    """Outside the article: one group named for each mount pays for everything on it."""
    scene = Scene(Designated(C))
    scene.allocate(A)
    scene.touch(B)
    assert scene.bill() == {C: 4}
    scene.exit(A)
    assert (scene.bill(), scene.zombie_pages(A)) == ({C: 4}, 0)
    scene.exit(C)
    assert scene.zombie_pages(C) == 4
