"""What comes of a tenant's own acts, and what of others': told from nothing but the books of two settlements."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from controller.billing.bill import make_bill
from controller.billing.holdings import Books, SharingClass, Unasked, without
from controller.billing.inheritance import FRESH_SECONDS, Inheritance
from controller.policies.proportional import Proportional
from controller.policies.registry import policy_to_settle
from sharedfs.linux.cgroups import CgroupRef

MIB = 1 << 20
A, B, C, D = (CgroupRef(f"/{name}", inode) for inode, name in enumerate("abcd", 1))
NOBODY = frozenset[CgroupRef]()


def held(owner: CgroupRef | None, *users: CgroupRef) -> SharingClass:
    return SharingClass("p", owner, frozenset(users), NOBODY, foreign=False)


@dataclass
class Pool:
    """One pool that is settled twice a second."""

    known: Inheritance = field(default_factory=Inheritance)
    now: float = 0.0

    def settle(
        self,
        books: Books,
        alive: Iterable[CgroupRef] = (A, B, C, D),
        policy: str = "proportional",
        unasked: Mapping[CgroupRef, Unasked] | None = None,
    ) -> dict[CgroupRef, int]:
        self.now += 0.5
        ruled = policy_to_settle(policy, None)
        there = frozenset(alive)
        left = without(books, frozenset((A, B, C, D)) - there)
        bill = make_bill([left], there, ruled)
        self.yielding = self.known.update(self.now, "p", left, there, bill, ruled, unasked)
        return dict(self.yielding.inherited)


def test_what_an_exit_adds_is_inherited_and_what_was_paid_before_is_not() -> None:
    pool = Pool()
    pool.settle({held(A, A): 400 * MIB})
    assert pool.settle({held(A, A, B): 400 * MIB}) == {}
    assert pool.settle({held(A, A, B): 400 * MIB}, (B, C, D)) == {B: 200 * MIB}
    assert pool.known.own["p", B] == 200 * MIB


def test_an_exit_in_the_half_second_of_the_touch_is_told_apart_too() -> None:
    """The controller never saw the price that was known: it was of one user more, at least."""
    pool = Pool()
    pool.settle({held(A, A): 400 * MIB})
    assert pool.settle({held(A, A, B): 400 * MIB}, (B, C, D)) == {B: 200 * MIB}


def test_what_others_let_go_is_inherited_and_shrinks_with_the_share() -> None:
    pool = Pool()
    pool.settle({held(A, A, B, C): 300 * MIB})
    assert pool.settle({held(A, A, B): 300 * MIB}) == {A: 50 * MIB, B: 50 * MIB}
    assert pool.settle({held(A, A, B, C): 300 * MIB}) == {}
    assert pool.settle({held(A, A): 120 * MIB}) == {A: 20 * MIB}
    assert pool.settle({}) == {}


def test_what_a_tenant_makes_is_its_own_whatever_it_lets_go_meanwhile() -> None:
    """Cheap pages of others given up for dear ones of its own in one settlement: nothing is inherited."""
    pool = Pool()
    pool.settle({held(A, A, B, C, D): 400 * MIB})
    assert pool.settle({held(A, A, C, D): 400 * MIB, held(B, B): 300 * MIB}).get(B) is None
    assert pool.known.own["p", B] == 300 * MIB


def test_touches_are_fresh_for_a_while_and_own_pages_are_not() -> None:
    pool = Pool()
    pool.settle({held(A, A): 100 * MIB})
    books = {held(A, A, B): 100 * MIB, held(B, B): 30 * MIB}
    pool.settle(books)
    assert pool.yielding.fresh == {B: 50 * MIB}
    for _ in range(int(FRESH_SECONDS * 2) - 1):
        pool.settle(books)
        assert pool.yielding.fresh == {B: 50 * MIB}
    pool.settle(books)
    assert pool.yielding.fresh == {}
    assert pool.yielding.inherited == {}


def test_another_policy_is_somebody_elses_act() -> None:
    pool = Pool()
    books = {held(A, A, B): 100 * MIB}
    pool.settle(books)
    assert pool.settle(books, policy="first_touch") == {A: 50 * MIB}


def test_after_a_restart_what_grew_meanwhile_is_inherited() -> None:
    again = Pool(Inheritance({("p", B): 50 * MIB}))
    assert again.settle({held(None, B): 100 * MIB, held(C, C): 10 * MIB}) == {B: 50 * MIB}
    assert again.known.own == {("p", B): 50 * MIB, ("p", C): 10 * MIB, ("p", A): 0, ("p", D): 0}


def test_the_first_books_do_not_tell_whose_act_a_share_is() -> None:
    """A controller that starts later than the pool: who uses what a maker left may have inherited all of it."""
    pool = Pool()
    assert pool.settle({held(None, B): 300 * MIB, held(C, C, B): 40 * MIB, held(D, D): 5 * MIB}) == {B: 300 * MIB}
    assert pool.known.own == {("p", A): 0, ("p", B): 20 * MIB, ("p", C): 20 * MIB, ("p", D): 5 * MIB}
    assert pool.yielding.fresh == {}


def test_what_was_touched_is_fresh_once_more_after_a_restart() -> None:
    again = Pool(Inheritance({("p", B): 60 * MIB}))
    assert again.settle({held(A, A, B): 100 * MIB, held(B, B): 10 * MIB}) == {}
    assert again.yielding.fresh == {B: 50 * MIB}


def test_what_the_operator_hands_over_is_inherited() -> None:
    pool = Pool()
    pool.settle({held(A, A): 400 * MIB, held(B, B): 8 * MIB})
    handed = {B: Unasked(handed_bytes=400 * MIB)}
    assert pool.settle({held(B, B): 410 * MIB}, unasked=handed) == {B: 400 * MIB}
    assert pool.known.own["p", B] == 10 * MIB, "it made 2 MiB meanwhile"
    assert pool.settle({held(B, B): 411 * MIB}, unasked=handed) == {B: 400 * MIB}, "it is counted once"


def test_what_others_add_is_inherited() -> None:
    pool = Pool()
    pool.settle({held(A, A, B): 2 * MIB})
    added = {B: Unasked(added_bytes=400 * MIB)}
    assert pool.settle({held(A, A, B): 402 * MIB}, unasked=added) == {B: 200 * MIB}
    assert pool.settle({held(A, A, B): 404 * MIB}, unasked=added) == {B: 200 * MIB}
    added = {B: Unasked(added_bytes=6 * MIB)}  # by another daemon
    assert pool.settle({held(A, A, B): 412 * MIB}, unasked=added) == {B: 203 * MIB}


acts = st.lists(
    st.tuples(st.sampled_from(["touch", "leave"]), st.sampled_from([A, B, C, D]), st.integers(0, 3)), max_size=30
)


@given(acts)
def test_one_act_a_settlement_is_told_to_the_byte(story: list[tuple[str, CgroupRef, int]]) -> None:
    """Beside an oracle that sees each act: own grows by the actor's own touches only, at the price of that moment."""
    sizes = [12 * MIB, 5 * MIB + 4096, 7 * 4096, 60 * MIB]
    users: list[set[CgroupRef]] = [set() for _ in sizes]
    pool, policy = Pool(), Proportional()

    def books() -> dict[SharingClass, int]:
        told: dict[SharingClass, int] = {}
        for index, there in enumerate(users):
            key = held(None, *there)
            told[key] = told.get(key, 0) + sizes[index]
        return told

    def shares() -> dict[CgroupRef, int]:
        bill = make_bill([books()], (A, B, C, D), policy)
        return {tenant: line.share_bytes for tenant, line in bill.tenants.items()}

    own = dict.fromkeys((A, B, C, D), 0)
    pool.settle(books())
    for act, actor, index in story:
        before = shares()
        (users[index].add if act == "touch" else users[index].discard)(actor)
        after = shares()
        grown = {tenant: after[tenant] - before[tenant] if tenant == actor else 0 for tenant in own}
        own = {tenant: min(after[tenant], own[tenant] + max(0, grown[tenant])) for tenant in own}
        inherited = pool.settle(books())
        for tenant in own:
            assert abs(pool.known.own["p", tenant] - own[tenant]) <= len(sizes), "a byte for each class"
            assert 0 <= inherited.get(tenant, 0) <= after[tenant], "never more than is owed"
