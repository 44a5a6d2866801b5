"""Admission: how much each tenant may still make resident, as the controller allows it ahead of need.

A tenant whose share would grow beyond what its budget can bear is refused with EDQUOT before anything is allocated, so
that it never gets into debt by writing. The write path asks nobody: what is left of each allowance is a number here.

An allowance is a mark, not an amount: "until your even share is so many bytes". The even share (each page divided by
its payers) is what a tenant pays as long as the policy is proportional; new pages count in full, for nobody else uses
them yet. A mark that is late, or told twice, does no harm: growth since the books that it was made from counts.
Between two marks only growth is counted, which is cheap; when that has used the allowance up, the books are looked at,
for the tenant may have freed something. Who touches what others made is not refused: that is debt, and shown.

Allowances end when they are not renewed: without a controller nobody moves limits either, and a pool's size is what
bounds its tenants. Call everything with the books' lock held.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from errno import EDQUOT
from os import strerror

from sharedfs.common.headroom import DEFAULT_ROOM
from sharedfs.ledger.class_view import ClassView
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.memory_limits import Reading

LOOKED_AT_CLASSES = 1024
"""Of a tenant that has used its allowance up: a millisecond."""
_NEVER = float("-inf")


def even_shares(holdings: Iterable[tuple[SharingClass, int]]) -> dict[TenantId, int]:
    """Each class divided by its payers, rounded down: what each tenant pays if all pay alike. O(classes x payers)."""
    shares: dict[TenantId, int] = {}
    for held, held_bytes in holdings:
        payers = held.payers
        for payer in payers:
            shares[payer] = shares.get(payer, 0) + held_bytes // len(payers)
    return shares


def first_allowance(limits: Iterable[Reading]) -> int | None:
    """What a tenant under these limits may make before the controller has seen it; None where none bounds it.

    Its pages come off its limit as soon as they are billed: what it has of its own by then, and the room that is always
    left, must fit beside them.
    """
    tightest = min(limits, key=lambda limit: limit.free_bytes, default=None)
    return None if tightest is None else max(0, tightest.free_bytes - DEFAULT_ROOM.of(tightest.limit_bytes))


class Allowances:
    """`monotonic` is the clock."""

    def __init__(self, ledger: Ledger, monotonic: Callable[[], float]) -> None:
        self.left: dict[TenantId, int] = {}
        """Bytes that tenants may still make resident; who is not listed may make any. Also for `ops/fastpath.c`."""
        self.refused = 0
        """How often a tenant was refused, since the start."""
        self._ledger = ledger
        self._monotonic = monotonic
        self._marks: dict[TenantId, int] = {}
        self._at_will: set[TenantId] = set()  # whom the controller has seen, and gave no mark
        self._taken: dict[TenantId, int] = {}  # for pages that are being made
        self._looked_at: dict[TenantId, int] = {}  # the ledger's sequence when `left` was last worked out anew
        self._sequence = -1
        self._expires_seconds = _NEVER

    @property
    def in_force(self) -> bool:
        return self._monotonic() < self._expires_seconds

    def state(self) -> "AllowanceState":
        """The books as `put` is to count with them. O(ids + tenants), at the speed of memory."""
        unspent = {tenant: left + self._taken.get(tenant, 0) for tenant, left in self.left.items()}
        return AllowanceState(self._ledger, self._ledger.classes(), self._ledger.sequence, unspent)

    def put(
        self,
        sequence: int,
        marks: Mapping[TenantId, int | None],
        valid_seconds: float,
        state: "AllowanceState | None" = None,
        shares: Mapping[TenantId, int] | None = None,
    ) -> bool:
        """New marks, None for a tenant that may grow at will. Who is not named keeps what it has.

        False, with nothing changed, when later ones are here already. `shares` are those of `state`, an earlier one,
        and have been worked out without the lock: what was made since is counted on. O(tenants); O(classes x payers)
        without these.
        """
        if sequence < self._sequence and self.in_force:
            return False
        self._sequence = sequence
        self._expires_seconds = self._monotonic() + valid_seconds
        state = self.state() if state is None else state
        shares = state.shares() if shares is None else shares
        for tenant, mark in marks.items():
            if mark is None:
                self.forget(tenant)
                self._at_will.add(tenant)
            else:
                self._at_will.discard(tenant)
                taken = self._taken.get(tenant, 0)
                unspent = self.left.get(tenant, 0) + taken
                made = max(0, state.unspent.get(tenant, unspent) - unspent)
                self._marks[tenant] = mark
                self.left[tenant] = mark - shares.get(tenant, 0) - made - taken
                self._looked_at[tenant] = state.sequence
        return True

    def lack(self, tenant: TenantId) -> bool:
        """Whether the controller has not seen this tenant yet, so that it should `begin` with an allowance."""
        return self.in_force and tenant not in self._marks and tenant not in self._at_will

    def begin(self, tenant: TenantId, room_bytes: int | None) -> None:
        """What a tenant may make until the controller has seen it; None: what it likes."""
        if room_bytes is not None and self.lack(tenant):
            self._marks[tenant] = self.left[tenant] = room_bytes

    def take(self, tenant: TenantId, needed_bytes: int) -> None:
        """Take bytes out of the allowance, for pages about to be made. Raises OSError (EDQUOT), and takes nothing."""
        left = self.left.get(tenant)
        if left is None or not needed_bytes:
            return
        if left < needed_bytes:
            if not self.in_force:
                self.expire()
                return
            left = self.left[tenant] = self._look_again(tenant, left)
            if left < needed_bytes:
                self.refused += 1
                raise OSError(EDQUOT, strerror(EDQUOT))
        self.left[tenant] = left - needed_bytes
        self._taken[tenant] = self._taken.get(tenant, 0) + needed_bytes

    def give_back(self, tenant: TenantId, taken_bytes: int) -> None:
        """What was taken; what became of it has been spent meanwhile."""
        self.spend(tenant, -taken_bytes)
        taken = self._taken.get(tenant, 0) - taken_bytes
        if taken > 0:
            self._taken[tenant] = taken
        else:
            self._taken.pop(tenant, None)

    def spend(self, tenant: TenantId, made_bytes: int) -> None:
        """Pages were made resident for `tenant`. O(1)."""
        left = self.left.get(tenant)
        if left is not None:
            self.left[tenant] = left - made_bytes

    def forget(self, tenant: TenantId) -> None:
        self._at_will.discard(tenant)
        for kept in (self.left, self._marks, self._taken, self._looked_at):
            kept.pop(tenant, None)

    def expire(self) -> None:
        """End allowances that were not renewed in time. In place: the shortcut holds on to `left`."""
        if (self.left or self._at_will) and not self.in_force:
            for kept in (self.left, self._marks, self._looked_at, self._at_will):
                kept.clear()

    def _look_again(self, tenant: TenantId, left: int) -> int:
        """What is left by the books as they are: more than was counted when the tenant freed something."""
        if tenant == NOBODY or self._looked_at.get(tenant) == self._ledger.sequence:
            return left
        if self._ledger.classes_of(tenant) > LOOKED_AT_CLASSES:
            return left  # the next mark tells, in a second: this look would hold up everybody else
        self._looked_at[tenant] = self._ledger.sequence
        share = even_shares(self._ledger.holdings_of_tenant(tenant)).get(tenant, 0)
        return max(left, self._marks[tenant] - share - self._taken.get(tenant, 0))


@dataclass(frozen=True, slots=True)
class AllowanceState:
    """The books at one moment, and what each tenant might still have made then."""

    ledger: Ledger
    classes: ClassView
    sequence: int
    unspent: Mapping[TenantId, int]

    def shares(self) -> dict[TenantId, int]:
        """The even shares. Without the lock. O(classes x payers)."""
        return even_shares(self.ledger.holdings_of(self.classes))
