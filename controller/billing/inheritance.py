"""What a tenant inherits: the part of its share that others' acts put on it, and not its own. Pure.

A tenant takes a part of its share on itself when it allocates or touches pages, at the price of that moment. All else
that it owes comes from others: a user exits, or lets a page go idle, and those who stay pay more; an operator changes
the policy or hands files over. So `own` grows by nothing but the tenant's own uses, falls with the share, and the rest
is inherited.

Uses are told by the books of two settlements. When others come and go, a tenant's pages move between classes and their
sum stays. What else it came to use by no act of its own the pool counts (`Unasked`), and that is taken off. Pages that
the tenant allocated are counted apart from others' pages, so that giving up cheap pages for dear ones of its own is no
way to inherit. A page that a user used when it exited in between, and that is new to the tenant, had the price of one
user more when the tenant touched it.

Nobody refuses a touch, so a tenant learns its price from its bill. What it has touched of others' pages is `fresh` for
ten seconds, the time in which needs count as those of late (`peaks`), and yields as what is inherited does.

The first books of a pool do not say whose act it was that a share is as it is. A tenant has then taken on itself what
is known from an earlier life. Else it inherits pages whose owner is gone, and its price of others is taken for its own:
that users beside the owner went before is not seen. After a restart what it has of others' pages is fresh once more.
"""

from collections import Counter, deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from mmap import PAGESIZE

from controller.billing.bill import Bill
from controller.billing.holdings import Books, SharingClass, Unasked, without
from controller.policies.policy import Policy
from sharedfs.linux.cgroups import CgroupRef

Account = tuple[str, CgroupRef]
"""A pool's name and a tenant."""

FRESH_SECONDS = 10.0

_NOTHING = Unasked()
_GHOST = CgroupRef("", 0)
"""In place of a user that has exited."""


@dataclass(frozen=True, slots=True)
class Yielding:
    """What yields of the shares in one pool, by tenant: what is inherited, and what was touched of late."""

    inherited: Mapping[CgroupRef, int]
    fresh: Mapping[CgroupRef, int]


@dataclass(slots=True)
class _Growth:
    """What one tenant came to use of one kind of pages. `price_with_ghost` is `price` with one user more."""

    net_bytes: int = 0
    gained_bytes: int = 0
    price: int = 0
    price_with_ghost: int = 0


class Inheritance:
    """`own` is what tenants took on themselves, as far as it is known from an earlier life."""

    def __init__(self, own: Mapping[Account, int] | None = None) -> None:
        self.own: dict[Account, int] = dict(own or {})
        self._books: dict[str, Books] = {}
        self._unasked: dict[str, Mapping[CgroupRef, Unasked]] = {}
        self._fresh: dict[Account, deque[tuple[float, int]]] = {}

    def update(
        self,
        now_seconds: float,
        pool: str,
        books: Books,
        alive: Set[CgroupRef],
        bill: Bill,
        policy: Policy,
        unasked: Mapping[CgroupRef, Unasked] | None = None,
    ) -> Yielding:
        """What yields for each tenant on `bill` of `pool`, whose `books` hold nobody but those `alive`.

        `now_seconds` never goes back. O(classes + changed classes x users).
        """
        before, counted = self._books.get(pool), {} if unasked is None else unasked
        if before is None:
            made, touched = self._first(pool, books, bill, policy)
        else:
            made, touched = _taken(before, books, alive, policy, _since(counted, self._unasked[pool]))
        inherited, fresh = {}, {}
        for tenant, line in bill.tenants.items():
            account, share_bytes = (pool, tenant), line.share_bytes
            own_bytes = self.own.get(account, 0) + made.get(tenant, 0) + touched.get(tenant, 0)
            own_bytes = min(own_bytes, share_bytes)
            self.own[account] = own_bytes
            if share_bytes - own_bytes >= PAGESIZE:  # less is rounding
                inherited[tenant] = share_bytes - own_bytes
            if fresh_bytes := min(own_bytes, self._freshen(now_seconds, account, touched.get(tenant, 0))):
                fresh[tenant] = fresh_bytes
        for account in [account for account in self.own if account[0] == pool and account[1] not in bill.tenants]:
            del self.own[account]
            self._fresh.pop(account, None)
        self._books[pool], self._unasked[pool] = books, counted
        return Yielding(inherited, fresh)

    def _first(
        self, pool: str, books: Books, bill: Bill, policy: Policy
    ) -> tuple[dict[CgroupRef, int], dict[CgroupRef, int]]:
        """What is taken for made, and for touched just now, of the first books of a pool."""
        owned, priced = Counter[CgroupRef](), Counter[CgroupRef]()
        for held, held_bytes in books.items():
            if held.owner is not None:
                owned[held.owner] += held_bytes
                priced.update(policy.charge(held, held_bytes))
        is_restart = any(known == pool for known, _ in self.own)
        made, touched = {}, {}
        for tenant, line in bill.tenants.items():
            known_bytes = min(self.own.pop((pool, tenant), priced[tenant]), line.share_bytes)
            made[tenant] = min(owned[tenant], known_bytes) if is_restart else known_bytes
            touched[tenant] = known_bytes - made[tenant]
        return made, touched

    def _freshen(self, now_seconds: float, account: Account, touched_bytes: int) -> int:
        if touched_bytes:
            self._fresh.setdefault(account, deque()).append((now_seconds, touched_bytes))
        touches = self._fresh.get(account)
        if touches is None:
            return 0
        while touches and touches[0][0] <= now_seconds - FRESH_SECONDS:
            touches.popleft()
        if not touches:
            del self._fresh[account]
        return sum(touched for _, touched in touches)


def _since(now: Mapping[CgroupRef, Unasked], before: Mapping[CgroupRef, Unasked]) -> dict[CgroupRef, Unasked]:
    return {tenant: unasked.since(before.get(tenant, _NOTHING)) for tenant, unasked in now.items()}


def _taken(
    before: Books, books: Books, alive: Set[CgroupRef], policy: Policy, unasked: Mapping[CgroupRef, Unasked]
) -> tuple[dict[CgroupRef, int], dict[CgroupRef, int]]:
    """The price of what each tenant came to use by itself: of pages that it allocated, and of others' pages."""
    gone = _tenants(before) - alive
    old = without(before, gone)
    exited_bytes = Counter[CgroupRef]()
    if gone:
        held_by_gone = [(held.payers, held_bytes) for held, held_bytes in before.items() if held.payers & gone]
        for tenant in _tenants(books):
            exited_bytes[tenant] = sum(held_bytes for users, held_bytes in held_by_gone if tenant not in users)
    growths: dict[tuple[CgroupRef, bool], _Growth] = {}
    for held in old.keys() | books.keys():
        old_bytes, new_bytes = old.get(held, 0), books.get(held, 0)
        if old_bytes != new_bytes:
            _note(growths, held, old_bytes, new_bytes, policy)
    made: dict[CgroupRef, int] = {}
    touched: dict[CgroupRef, int] = {}
    for (tenant, is_owner), growth in growths.items():
        others = unasked.get(tenant, _NOTHING)
        growth.net_bytes -= others.handed_bytes if is_owner else others.added_bytes
        if growth.net_bytes > 0:
            with_ghost_bytes = min(growth.net_bytes, exited_bytes[tenant])
            weighed = growth.price * (growth.net_bytes - with_ghost_bytes) + growth.price_with_ghost * with_ghost_bytes
            (made if is_owner else touched)[tenant] = weighed // growth.gained_bytes
    return made, touched


def _note(
    growths: dict[tuple[CgroupRef, bool], _Growth], held: SharingClass, old_bytes: int, new_bytes: int, policy: Policy
) -> None:
    parts = policy.charge(held, old_bytes), policy.charge(held, new_bytes)
    crowded = replace(held, payers=held.payers | {_GHOST})
    ghost_parts = policy.charge(crowded, old_bytes), policy.charge(crowded, new_bytes)
    for tenant in held.payers:
        growth = growths.setdefault((tenant, held.owner == tenant), _Growth())
        growth.net_bytes += new_bytes - old_bytes
        if new_bytes > old_bytes:
            growth.gained_bytes += new_bytes - old_bytes
            growth.price += parts[1].get(tenant, 0) - parts[0].get(tenant, 0)
            growth.price_with_ghost += ghost_parts[1].get(tenant, 0) - ghost_parts[0].get(tenant, 0)


def _tenants(books: Books) -> set[CgroupRef]:
    return {user for held in books for user in held.payers}
