"""What tenants below one cgroup may make together, however many there are of them and however short they live."""

from collections.abc import Mapping
from contextlib import suppress
from errno import EDQUOT
from os import strerror

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.accounting.ancestors import FIRST_SECONDS, RENEWAL_SECONDS
from sharedfs.accounting.quota import Allowances
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import NOBODY, TenantId

PAGE = 4096
POD = TenantId(1)
CHILDREN = [TenantId(number) for number in range(2, 6)]
AT_WILL = 1 << 40


class Pod:
    """A cgroup with a mark, and tenants below it that may make what they like but for that."""

    def __init__(self, mark_pages: int) -> None:
        self.seconds = 0.0
        self.ledger = Ledger(PAGE, on_freed=lambda held, pages: self.allowances.above.freed(held, pages * PAGE))
        self.allowances = Allowances(self.ledger, lambda: self.seconds)
        self.allowances.above.join(POD, "/pod")
        self.files = 0
        self.sequence = 0
        self.born: set[TenantId] = set()
        self.mark(mark_pages)

    def mark(self, pages: int) -> None:
        self.mark_pages = pages
        self.sequence += 1
        self.put({"/pod": pages * PAGE})

    def put(self, above: Mapping[str, int]) -> None:
        state = self.allowances.state()
        below = self.allowances.above.below(above)
        shares = {path: sum(state.shares().get(one, 0) for one in tenants) for path, tenants in below.items()}
        assert self.allowances.put(self.sequence, dict.fromkeys(self.born, AT_WILL), 10.0, state)
        self.allowances.put_above(above, 10.0, state, shares)

    def write(self, child: TenantId, pages: int) -> bool:
        """As the write path does; False when it was refused."""
        if child not in self.born:
            self.born.add(child)
            self.allowances.above.join(child, f"/pod/{child}")
            self.allowances.begin(child, {"/pod": AT_WILL})
        refused = self.allowances.refused
        with suppress(OSError):
            self.allowances.take(child, pages * PAGE)
        if self.allowances.refused > refused:
            return False
        self.files += 1
        made = self.ledger.charge(self.files, 0, pages - 1, child)
        self.allowances.spend(child, made * PAGE)
        self.allowances.give_back(child, pages * PAGE)
        return True

    def exit(self, child: TenantId, heir: TenantId) -> None:
        self.ledger.exit(child, heir)
        self.allowances.forget(child)
        self.born.discard(child)

    @property
    def used_pages(self) -> int:
        """The oracle: what the books say that somebody at or below the pod pays for."""
        return sum(held_bytes for held, held_bytes in self.ledger.holdings() if held.payers) // PAGE


steps = st.tuples(st.sampled_from(["write", "exit", "cut", "mark"]), st.sampled_from(CHILDREN), st.integers(1, 8))


@given(mark=st.integers(0, 20), todo=st.lists(steps, max_size=40))
def test_refused_is_what_does_not_fit_and_nothing_else(mark: int, todo: list[tuple[str, TenantId, int]]) -> None:
    pod = Pod(mark)
    for what, child, number in todo:
        match what:
            case "write":
                fits = pod.used_pages + number <= pod.mark_pages
                assert pod.write(child, number) == fits
            case "exit":
                pod.exit(child, POD)
            case "cut":
                pod.ledger.drop(number)
            case "mark":
                pod.mark(number * 4)


def test_what_gone_children_left_counts() -> None:
    """The control: without an heir it is nobody's, and the next child may make as much again."""
    for heir, is_refused in ((POD, True), (NOBODY, False)):
        pod = Pod(8)
        assert pod.write(CHILDREN[0], 8)
        pod.exit(CHILDREN[0], heir)
        pod.ledger.age()
        pod.ledger.age()
        pod.mark(8)
        assert pod.write(CHILDREN[1], 1) == (not is_refused)


def test_siblings_have_one_room_before_the_controller_has_seen_any() -> None:
    pod = Pod(0)
    pod.seconds = 11.0
    pod.put({})  # a controller that knows nothing of the pod yet
    for child in CHILDREN[:3]:
        pod.allowances.above.join(child, f"/pod/{child}")
        pod.allowances.begin(child, {"/pod": 4 * PAGE, f"/pod/{child}": 3 * PAGE})
    pod.allowances.take(CHILDREN[0], 3 * PAGE)
    pod.allowances.take(CHILDREN[1], PAGE)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pod.allowances.take(CHILDREN[2], PAGE)
    pod.seconds += FIRST_SECONDS
    pod.allowances.take(CHILDREN[2], PAGE)


def test_a_mark_that_is_told_no_more_ends() -> None:
    pod = Pod(1)
    assert not pod.write(CHILDREN[0], 2)
    pod.sequence += 1
    pod.put({})
    assert not pod.write(CHILDREN[0], 2), "it may be on its way"
    pod.seconds += RENEWAL_SECONDS
    assert pod.write(CHILDREN[0], 2)


def test_a_tenant_that_was_renamed_counts_where_it_is_now() -> None:
    pod = Pod(4)
    assert pod.write(CHILDREN[0], 4)
    pod.allowances.above.join(CHILDREN[0], "/elsewhere")
    pod.mark(4)
    assert pod.write(CHILDREN[0], 9)
    assert pod.write(CHILDREN[1], 4)


def test_who_makes_and_removes_files_uses_nothing_up() -> None:
    """However many tenants there are: nobody looks at the books of them all for one that is near a mark."""
    pod = Pod(100)
    for number in range(100, 200):
        pod.allowances.above.join(TenantId(number), f"/pod/{number}")
    for _ in range(20):
        assert pod.write(CHILDREN[0], 90)
        pod.ledger.drop(pod.files)
    assert pod.write(CHILDREN[1], 100)


def test_what_is_freed_while_marks_are_worked_out_may_be_used() -> None:
    pod = Pod(100)
    assert pod.write(CHILDREN[0], 100)
    state, below = pod.allowances.state(), pod.allowances.above.below(["/pod"])
    shares = {path: sum(state.shares().get(one, 0) for one in tenants) for path, tenants in below.items()}
    pod.ledger.drop(pod.files)
    pod.allowances.put_above({"/pod": 100 * PAGE}, 10.0, state, shares)
    assert pod.write(CHILDREN[1], 100)


def test_a_newcomers_limits_do_not_bind_whom_the_controller_has_seen() -> None:
    pod = Pod(0)
    pod.seconds = 11.0
    assert pod.write(CHILDREN[0], 1)
    pod.put({})  # a budget for reports: the controller bounds nobody there
    pod.allowances.above.join(CHILDREN[1], "/pod/new")
    pod.allowances.begin(CHILDREN[1], {"/pod": 2 * PAGE})
    assert pod.write(CHILDREN[0], 50)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pod.allowances.take(CHILDREN[1], 3 * PAGE)


def test_a_newcomer_without_limits_is_counted_where_a_cap_is_above_it() -> None:
    pod = Pod(10)
    pod.allowances.above.join(CHILDREN[0], "/pod/new")
    pod.allowances.begin(CHILDREN[0], {})
    pod.allowances.take(CHILDREN[0], 10 * PAGE)
    with pytest.raises(OSError, match=strerror(EDQUOT)):
        pod.allowances.take(CHILDREN[0], PAGE)


def test_what_was_taken_by_who_is_gone_is_there_for_others() -> None:
    pod = Pod(10)
    assert pod.write(CHILDREN[0], 1)
    pod.allowances.take(CHILDREN[0], 9 * PAGE)
    pod.exit(CHILDREN[0], NOBODY)
    pod.allowances.give_back(CHILDREN[0], 9 * PAGE)
    assert pod.write(CHILDREN[1], 9)
