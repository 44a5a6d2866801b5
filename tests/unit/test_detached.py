"""Pages in no file: what is found is parted among those who were the last to use what went, to the byte."""

from threading import Lock

from hypothesis import given
from hypothesis import strategies as st

from sharedfs.accounting.detached import Detached, parted
from sharedfs.ledger.sharing_class import NO_TENANTS, SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from tests.support.parts import make_books

A, B = TenantId(1), TenantId(2)
PAGE = 4096
FILE = 7


@given(st.integers(0, 1 << 40), st.dictionaries(st.integers(0, 9).map(TenantId), st.integers(1, 1 << 40), min_size=1))
def test_parts_add_up_and_each_is_right_to_the_unit(total: int, weights: dict[TenantId, int]) -> None:
    parts = parted(total, weights)
    assert sum(parts.values()) == total
    whole = sum(weights.values())
    for tenant, part in parts.items():
        assert abs(part * whole - total * weights[tenant]) < whole


freed = st.tuples(
    st.sampled_from([A, B, NOBODY]), st.frozensets(st.sampled_from([A, B])), st.booleans(), st.integers(1, 99)
)


@given(st.lists(st.one_of(freed, st.integers(0, 1 << 30), st.sampled_from(["A exits", "B exits"]))))
def test_it_adds_up_whatever_comes(steps: list[object]) -> None:
    detached, total = Detached(Lock()), 0
    for step in steps:
        match step:
            case int():
                total = step
                detached.put(total)
            case str():
                detached.forget(A if step[0] == "A" else B, NOBODY)
            case (owner, users, are_recent, pages):
                held = SharingClass(
                    owner,  # type: ignore[has-type]
                    recent=users if are_recent else NO_TENANTS,  # type: ignore[has-type]
                    mapped=NO_TENANTS if are_recent else users,  # type: ignore[has-type]
                )
                detached.freed(held, pages)  # type: ignore[has-type]
        assert sum(detached.by_payer.values()) == detached.bytes == total
        assert all(detached.by_payer.values())


def test_who_used_the_pages_last_pays() -> None:
    """Not their owner, who has not used them for long, unless nobody else has."""
    detached = Detached(Lock())
    detached.freed(SharingClass(A, recent=frozenset({B})), 10)
    detached.put(10 * PAGE)
    assert detached.by_payer == {B: 10 * PAGE}
    detached.put(10 * PAGE)
    detached.put(10 * PAGE)  # two looks later nobody is asked for what went before them
    detached.freed(SharingClass(A), 10)
    detached.put(30 * PAGE)
    assert detached.by_payer == {B: 10 * PAGE, A: 20 * PAGE}
    detached.put(15 * PAGE)
    assert detached.by_payer == {B: 5 * PAGE, A: 10 * PAGE}
    detached.forget(A, NOBODY)
    assert detached.by_payer == {B: 5 * PAGE, NOBODY: 10 * PAGE}
    detached.put(0)
    assert detached.by_payer == {}


def test_the_ledger_tells_of_pages_that_go_in_each_way() -> None:
    books = make_books()
    tenant = books.tenants.intern("/t", 1)
    ways = (
        lambda: books.pages.uncharge(FILE, 0, 9),
        lambda: books.pages.uncharge(FILE, 0, 9, kept=[(3, 4)]),
        lambda: books.pages.drop(FILE),
        lambda: books.pages.lose_absent(FILE, 0, 9, lambda first, last: []),
    )
    for number, way in enumerate(ways):
        books.pages.charge(FILE, 0, 10 * PAGE, tenant)
        for _ in range(3):
            books.detached.put(number * PAGE)
        way()
        books.detached.put((number + 1) * PAGE)
        assert books.detached.by_payer == {tenant: (number + 1) * PAGE}
        books.pages.drop(FILE)
    reading = books.questions.reading()
    assert reading.detached == {tenant: len(ways) * PAGE}
    books.tenants.exit([tenant])
    assert books.questions.reading().detached == {NOBODY: len(ways) * PAGE}
    assert books.questions.reading().sequence > reading.sequence
    books.close()


def test_an_owner_that_has_not_used_the_pages_does_not_pay_beside_who_has() -> None:
    detached = Detached(Lock())
    detached.freed(SharingClass(A, older=frozenset({B})), 10)
    detached.put(10 * PAGE)
    assert detached.by_payer == {B: 10 * PAGE}
    left = Detached(Lock())
    left.freed(SharingClass(NOBODY, heir=A), 10)
    left.put(10 * PAGE)
    assert left.by_payer == {A: 10 * PAGE}, "what nobody uses is the heir's"
