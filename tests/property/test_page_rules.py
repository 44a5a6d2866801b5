"""The lab's rules for a page that is billed by use are the ledger's: what a replay bills is what the daemon would."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policies.families import ByUse
from controller.policies.page_state import Kind, Page, Place
from controller.policies.policy import Policy
from controller.policies.registry import POLICIES, policy_named
from sharedfs.api.types import NOBODY_PATH
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.cgroups import CgroupRef

TENANTS = {TenantId(number): CgroupRef(f"/{name}", number) for number, name in enumerate("abc", 1)}
NAMES = TENANTS | {NOBODY: CgroupRef(NOBODY_PATH, 0)}

events = st.lists(
    st.tuples(
        st.sampled_from([*("allocate", "touch", "map", "unmap") * 2, "exit", "age", "swap", "free"]),
        st.sampled_from(sorted(TENANTS)),
    )
    | st.tuples(st.just("allocate"), st.just(NOBODY)),
    max_size=30,
)


@dataclass
class Both:
    """One page, as the ledger has it (None: not resident) and as the lab has it under `policy`."""

    policy: Policy
    held: SharingClass | None = None
    page: Page = field(default_factory=lambda: Page(Kind.SHMEM))

    def play(self, act: str, tenant: TenantId) -> None:
        cgroup, policy, page = NAMES[tenant], self.policy, self.page
        match act:
            case "allocate":
                self.held = self.held.touched_by(tenant) if self.held else SharingClass.charged_by(tenant)
                self.page = policy.allocate(page, cgroup)
            case "touch":
                self.held = self.held and self.held.touched_by(tenant)
                self.page = policy.touch(page, cgroup)
            case "map":
                self.held = self.held and self.held.mapped_by(tenant)
                self.page = policy.map(page, cgroup)
            case "unmap":
                self.held = self.held and self.held.unmapped_by(tenant)
                self.page = policy.unmap(page, cgroup)
            case "exit":
                self.held = self.held and self.held.without(tenant)
                self.page = policy.exit(page, cgroup)
            case "age":
                self.held = self.held and self.held.aged()
                self.page = policy.age(page)
            case "swap":  # the ledger leaves it to whoever makes the bill
                self.page = policy.swap(page)
            case "free":
                self.held = None
                self.page = policy.free(page)

    def check(self) -> None:
        held, page = self.held, self.page
        assert (held is None) == (page.place is Place.ABSENT)
        if held is None:
            held = SharingClass(NOBODY)
        assert page.maker == (None if held.owner == NOBODY else NAMES[held.owner])
        for users, known in ((page.recent, held.recent), (page.older, held.older), (page.mapped, held.mapped)):
            assert users == {NAMES[user] for user in known}
        assert page.payers == {NAMES[payer] for payer in held.payers}


COPIES = "avoid_sharing"  # gives a second user a page of its own, so it has other users on purpose
BY_USE = [name for name in POLICIES if name != COPIES and isinstance(policy_named(name, CgroupRef("/a", 1)), ByUse)]


@pytest.mark.parametrize("name", BY_USE)
@given(history=events)
def test_the_lab_and_the_ledger_have_the_same_users_of_a_page(name: str, history: list[tuple[str, TenantId]]) -> None:
    both = Both(policy_named(name, CgroupRef("/a", 1)))
    for act, tenant in history:
        both.play(act, tenant)
        both.check()


class Forgetful(ByUse):
    """An unmapping that counts as no touch."""

    name = "forgetful"
    charge = policy_named("proportional").charge  # type: ignore[assignment]

    def unmap(self, page: Page, tenant: CgroupRef) -> Page:
        return page._replace(mapped=page.mapped - {tenant})


def test_a_rule_that_differs_is_seen() -> None:
    """The control: `munmap` before each ageing would be a way not to pay."""
    both = Both(Forgetful())
    for act, tenant in (("allocate", 1), ("map", 2), ("unmap", 2)):
        both.play(act, TenantId(tenant))
    with pytest.raises(AssertionError):
        both.check()
