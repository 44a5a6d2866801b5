"""The policies that know who uses a page, each as the article or the research tells it."""

import pytest

from controller.policies.access_weighted import AccessWeighted
from controller.policies.avoid_sharing import AvoidSharing
from controller.policies.fairride import FairRide
from controller.policies.page_state import Kind, Page, Place
from controller.policies.policy import Demand, NeedsHistory
from controller.policies.proportional import Proportional
from controller.policies.registry import LIVE, POLICIES, SETTLED, policies_named, policy_named
from controller.policies.shared_parent import SharedParent
from sharedfs.common.errors import CallerMistake
from tests.support.pages import PAGE, A, B, C, Scene

HEAVY = Page(Kind.SHMEM, Place.RESIDENT, recent=frozenset({A, B}), file=1)
LIGHT = Page(Kind.SHMEM, Place.RESIDENT, recent=frozenset({A}), file=2)


def test_without_sharing_each_has_a_copy_and_memory_is_used_as_often() -> None:
    """Sharing memory is not a great idea, could it be avoided? Users try to save memory with more of it, not less."""
    scene = Scene(AvoidSharing())
    scene.allocate(A)
    scene.touch(B)
    scene.touch(C)
    assert scene.bill() == {A: 4, B: 4, C: 4}
    scene.exit(A)
    assert scene.bill() == {B: 4, C: 4}
    scene.exit(B)
    scene.exit(C)
    assert scene.count(Place.RESIDENT) == 0
    scene.touch(B)
    assert scene.bill() == {B: 4}


def test_a_parent_for_what_is_shared_is_on_nobodys_own_bill() -> None:
    """A separate parent for shared resources would track all groups that use them."""
    scene = Scene(SharedParent())
    scene.allocate(A)
    assert scene.bill() == {A: 4}
    scene.touch(B)
    assert scene.bill() == {}
    assert scene.exit(A) == 0
    assert scene.bill() == {B: 4}


def test_no_charge_moves_over_time_and_there_is_no_zombie() -> None:
    """A controller that owns what is shared and tracks its use: no movement of charges, no zombie groups."""
    scene = Scene(Proportional(), pages=6)
    scene.allocate(A)
    scene.touch(B)
    scene.touch(C)
    assert scene.bill() == {A: 2, B: 2, C: 2}
    assert scene.exit(A) == 0
    assert scene.zombie_pages(A) == 0
    assert scene.bill() == {B: 3, C: 3}


def test_an_old_touch_is_forgotten_and_a_mapping_is_not() -> None:
    """The bound on the error: a touch counts for one to two generations."""
    scene = Scene(Proportional(), pages=6)
    scene.allocate(A)
    scene.touch(C)
    scene.map(B)
    scene.age()
    assert scene.bill() == {A: 2, B: 2, C: 2}
    scene.age()
    assert scene.bill() == {A: 3, B: 3}
    scene.unmap(B)
    scene.age()
    assert scene.bill() == {A: 3, B: 3}
    scene.age()
    assert scene.bill() == {A: 6}


def test_the_maker_pays_while_it_lives_and_then_who_uses_it() -> None:
    scene = Scene(Proportional())
    scene.allocate(A)
    for _ in range(5):
        scene.age()
    scene.allocate(B)  # it writes over what A made
    assert scene.bill() == {A: 2, B: 2}
    scene.exit(A)
    assert scene.bill() == {B: 4}
    scene.age()
    scene.age()
    assert scene.bill() == {}
    scene.free()
    scene.allocate(B)
    for _ in range(5):
        scene.age()
    assert scene.bill() == {B: 4}, "what is made anew has a new maker"


def test_who_accesses_a_file_more_pays_more_of_it() -> None:
    """Shares in proportion to accesses; a user whose accesses nobody counted weighs as one access."""
    demand = Demand(accesses={1: {A: 3, B: 1}})
    assert AccessWeighted().bill({HEAVY: 8 * PAGE}, demand) == {A: 6 * PAGE, B: 2 * PAGE}
    assert AccessWeighted().bill({HEAVY: 8 * PAGE}, Demand(accesses={1: {A: 7}})) == {A: 7 * PAGE, B: PAGE}
    assert AccessWeighted().bill({LIGHT._replace(recent=frozenset()): PAGE}, demand) == {}


def test_who_spends_its_budget_elsewhere_does_not_pay_and_is_blocked() -> None:
    """FairRide: one of n who pay for a file each carry 1/n; who does not pay is delayed with probability 1/(n + 1)."""
    demand = Demand(accesses={1: {A: 100, B: 1}, 2: {B: 50}}, latest={1: {A: 10, B: 10}}, budgets={B: 2 * PAGE})
    own = LIGHT._replace(recent=frozenset({B}))
    holdings = {HEAVY: 4 * PAGE, own: 2 * PAGE}
    assert FairRide().bill_and_delays(holdings, demand) == ({A: 4 * PAGE, B: 2 * PAGE}, {B: 5})


def test_who_can_pay_for_everything_is_never_blocked() -> None:
    demand = Demand(accesses={1: {A: 100, B: 1}}, latest={1: {A: 10, B: 10}}, budgets={A: 8 * PAGE, B: 8 * PAGE})
    assert FairRide().bill_and_delays({HEAVY: 4 * PAGE}, demand) == ({A: 2 * PAGE, B: 2 * PAGE}, {})


# -- all of them


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in LIVE])
def test_what_live_books_do_not_say_is_not_made_up(name: str) -> None:
    """A page whose owner is gone, used by others: what happened since is not in the books."""
    with pytest.raises(NeedsHistory):
        policy_named(name).charge(HEAVY, PAGE)


@pytest.mark.parametrize("name", LIVE)
def test_the_others_bill_what_there_is_and_no_more(name: str) -> None:
    policy = policy_named(name, C)
    for held in (HEAVY, LIGHT, HEAVY._replace(owner=A), HEAVY._replace(mapped=frozenset({B, C}))):
        billed_bytes = sum(policy.charge(held, 7 * PAGE + 1).values())
        if policy.conserves:
            assert billed_bytes in (0, 7 * PAGE + 1)
        else:
            assert billed_bytes == (7 * PAGE + 1) * len(held.payers)


def test_limits_can_follow_what_conserves_and_needs_no_history() -> None:
    assert set(LIVE) - set(SETTLED) == {"avoid_sharing"}
    assert [policy.name for policy in policies_named(["evict", "all"])][:2] == ["evict", "first_touch"]
    assert len(policies_named(["all"])) == len(POLICIES) == 14
    with pytest.raises(CallerMistake, match="there is no policy equal"):
        policies_named(["equal"])
