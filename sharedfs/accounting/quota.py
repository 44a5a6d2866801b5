"""Admission: how much each tenant may still make resident, as the controller allows it ahead of need.

A tenant whose share would grow beyond what its budget can bear is refused with EDQUOT before anything is allocated, so
that it never gets into debt by writing. The write path asks nobody: what is left of each allowance is a number here.

An allowance is a mark, not an amount: "until your even share is so many bytes". The even share (each page divided by
its payers) is what a tenant pays as long as the policy is proportional; new pages count in full, for nobody else uses
them yet. A mark that is late, or told twice, does no harm: growth since the books that it was made from counts.
Between two marks only growth is counted, which is cheap; when that has used the allowance up, the books are looked at,
for the tenant may have freed something. Who touches what others made is not refused: that is debt, and shown.

Allowances end when they are not renewed: without a controller nobody moves limits either, and a pool's size and caps
(`caps.py`) are what bounds its tenants. Caps are marks that never end; the remainder is one, for all, while the pool is
so full that only it is left. The lowest mark counts. Call everything with the books' lock held.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from errno import EDQUOT
from os import strerror

from sharedfs.accounting.ancestors import LOOKED_AT_CLASSES, RENEWAL_SECONDS, AncestorAllowances
from sharedfs.accounting.caps import Caps
from sharedfs.common.headroom import DEFAULT_ROOM
from sharedfs.common.units import UNLIMITED_BYTES
from sharedfs.ledger.class_view import ClassView
from sharedfs.ledger.holdings import even_shares
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.tenant import NOBODY, TenantId
from sharedfs.linux.memory_limits import Reading

"""Of a tenant that has used its allowance up: a millisecond."""
_NEVER = float("-inf")


def first_allowances(limits: Iterable[Reading]) -> dict[str, int]:
    """What tenants may make below each cgroup with a limit, by path, before the controller has seen them.

    Their pages come off its limit as soon as they are billed: what is used there by then, and the room that is always
    left, must fit beside them.
    """
    rooms: dict[str, int] = {}
    for limit in limits:
        room_bytes = max(0, limit.free_bytes - DEFAULT_ROOM.of(limit.limit_bytes))
        rooms[limit.path] = min(room_bytes, rooms.get(limit.path, room_bytes))
    return rooms


class Allowances:
    """`monotonic` is the clock."""

    def __init__(self, ledger: Ledger, monotonic: Callable[[], float]) -> None:
        self.left: dict[TenantId, int] = {}
        """Bytes that tenants may still make resident; who is not listed may make any. Also for `ops/fastpath.c`."""
        self.refused = 0
        """How often a tenant was refused, since the start."""
        self._ledger = ledger
        self._monotonic = monotonic
        self.caps = Caps()
        self._only_remainder = False  # is left of the pool
        self._yielding_bytes = 0  # that nobody pays for, and that give way, when it was last looked
        self._marks: dict[TenantId, int] = {}
        self._at_will: set[TenantId] = set()  # whom the controller has seen, and gave no mark
        self._taken: dict[TenantId, int] = {}  # for pages that are being made
        self._new: set[TenantId] = set()  # whose mark is of the limits, for the controller has not told one
        self.above = AncestorAllowances(ledger, self._taken)
        self._looked_at: dict[TenantId, int] = {}  # the ledger's sequence when `left` was last worked out anew
        self._sequence = -1
        self._expires_seconds = _NEVER

    @property
    def in_force(self) -> bool:
        return self._monotonic() < self._expires_seconds

    def state(self) -> "AllowanceState":
        """The books as `put` is to count with them. O(ids + tenants), at the speed of memory."""
        unspent = {tenant: left + self._taken.get(tenant, 0) for tenant, left in self.left.items()}
        return AllowanceState(
            self._ledger, self._ledger.classes(), self._ledger.sequence, unspent, self.above.unspent()
        )

    def put(
        self,
        sequence: int,
        marks: Mapping[TenantId, int | None],
        valid_seconds: float,
        state: "AllowanceState | None" = None,
        shares: Mapping[TenantId, int] | None = None,
    ) -> bool:
        """New marks, None for a tenant that may grow at will, as far as its cap goes. Who is not named keeps its own.

        False, with nothing changed, when later ones are here already. `shares` are those of `state`, an earlier one,
        and have been worked out without the lock: what was made since is counted on. O(tenants); O(classes x payers)
        without these.
        """
        if sequence < self._sequence and self.in_force:
            return False
        if sequence != self._sequence:
            self.above.doubt(self._monotonic() + RENEWAL_SECONDS)
        self._sequence = sequence
        self._expires_seconds = self._monotonic() + valid_seconds
        state = self.state() if state is None else state
        shares = state.shares() if shares is None else shares
        self._new.difference_update(marks)
        for tenant, mark in marks.items():
            if mark is None:
                self._marks.pop(tenant, None)
                self._at_will.add(tenant)
            else:
                self._at_will.discard(tenant)
                self._marks[tenant] = mark
            unspent = self.left.get(tenant, 0) + self._taken.get(tenant, 0)
            made = max(0, state.unspent.get(tenant, unspent) - unspent)
            self._count(tenant, shares.get(tenant, 0) + made, state.sequence)
        return True

    def lack(self, tenant: TenantId) -> bool:
        """Whether a tenant is to `begin` with an allowance: the controller has not seen it, or no cap is counted."""
        return self._is_unseen(tenant) or (self.caps.bounds_tenants and tenant not in self.left)

    def _is_unseen(self, tenant: TenantId) -> bool:
        return self.in_force and tenant not in self._marks and tenant not in self._at_will

    def put_above(
        self, marks: Mapping[str, int], valid_seconds: float, state: "AllowanceState", shares: Mapping[str, int]
    ) -> None:
        """Marks for all tenants at and below a path together, by `shares` of these in an earlier `state`."""
        self.above.put(marks, shares, state.unspent_above, state.sequence, self._monotonic() + valid_seconds)

    def begin(self, tenant: TenantId, rooms: Mapping[str, int]) -> None:
        """What a tenant may make until the controller has seen it, by the limits at and above it (`first_allowances`).

        Without any: what it likes, and its cap lets it.
        """
        room_bytes = min(rooms.values(), default=None)
        if room_bytes is None and self.above.bounds(tenant):
            room_bytes = UNLIMITED_BYTES  # what is above decides
        if self.caps.bounds_tenants and tenant not in self.left:
            self._renew([tenant], even_shares(self._ledger.holdings_of_tenant(tenant)))
        if room_bytes is not None and self._is_unseen(tenant):
            self._marks[tenant] = room_bytes
            self._new.add(tenant)
            self.left[tenant] = min(room_bytes, self.left.get(tenant, room_bytes))
            self.above.begin(tenant, rooms, self._monotonic())

    # -- caps --------------------------------------------------------------------------------------------------------

    def bind(self, caps: Caps, tenants: Iterable[TenantId]) -> None:
        """The pool's caps are these from now on; `tenants` are those that live. O(classes x payers) if they are new."""
        same = replace(caps, pool_bytes=self.caps.pool_bytes) == self.caps
        self.caps = caps
        if same:
            return
        for tenant in tenants:
            self.left.setdefault(tenant, 0)
        self._only_remainder = False
        self._renew(list(self.left), even_shares(self._ledger.holdings()))

    def _ceiling(self, tenant: TenantId) -> int | None:
        """The lowest of the marks that are in force for a tenant; None where there is none."""
        marks = (
            self._marks.get(tenant),
            self.caps.cap_bytes,
            self.caps.remainder_bytes if self._only_remainder else None,
        )
        return min((mark for mark in marks if mark is not None), default=None)

    def _renew(self, tenants: Iterable[TenantId], shares: Mapping[TenantId, int]) -> None:
        """What is left of the marks that are in force, by these shares of now."""
        for tenant in tenants:
            self._count(tenant, shares.get(tenant, 0), self._ledger.sequence)

    def _count(self, tenant: TenantId, share_bytes: int, sequence: int) -> None:
        """What is left of the lowest mark in force, by a share that the books had at `sequence`.

        Where there are caps all tenants are counted, for the remainder may come to be all that is left.
        """
        ceiling = self._ceiling(tenant)
        if ceiling is not None:
            self.left[tenant] = ceiling - share_bytes - self._taken.get(tenant, 0)
            self._looked_at[tenant] = sequence
            return
        if self.caps.bounds_tenants:
            self.left[tenant] = UNLIMITED_BYTES
        else:
            self.left.pop(tenant, None)
        self._looked_at.pop(tenant, None)

    def _leaves_remainder(self, coming_bytes: int = 0) -> bool:
        """Whether the remainder is free when so much more is made."""
        return self._ledger.resident_bytes - self._yielding_bytes + coming_bytes <= self.caps.free_for_all_bytes

    def _set_only_remainder(self, only_remainder: bool) -> None:
        if only_remainder != self._only_remainder:
            self._only_remainder = only_remainder
            self._renew(list(self.left), even_shares(self._ledger.holdings()))

    def _may_take_remainder(self, tenant: TenantId, needed_bytes: int) -> bool:
        """Whether a tenant may have so much more, which only matters where it would touch the remainder."""
        if self._only_remainder or not self.caps.remainder_bytes:
            return True  # where only it is left, what is left of each allowance says so
        if self._leaves_remainder(sum(self._taken.values()) + needed_bytes):
            return True
        share = even_shares(self._ledger.holdings_of_tenant(tenant)).get(tenant, 0)
        return share + self._taken.get(tenant, 0) + needed_bytes <= self.caps.remainder_bytes

    # -- growth ------------------------------------------------------------------------------------------------------

    def take(self, tenant: TenantId, needed_bytes: int) -> None:
        """Take bytes out of the allowance, for pages about to be made. Raises OSError (EDQUOT), and takes nothing."""
        left = self.left.get(tenant)
        if left is None or not needed_bytes:
            return
        if left < needed_bytes and not self.in_force:
            self.expire()
            left = self.left.get(tenant)
            if left is None:
                return
        if left < needed_bytes:
            left = self.left[tenant] = self._look_again(tenant, left)
        if (
            left < needed_bytes
            or not self.above.allow(tenant, needed_bytes, self._monotonic(), is_new=tenant in self._new)
            or not self._may_take_remainder(tenant, needed_bytes)
        ):
            self.refused += 1
            raise OSError(EDQUOT, strerror(EDQUOT))
        self.left[tenant] = left - needed_bytes
        self.above.spend(tenant, needed_bytes)
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
            self.above.spend(tenant, made_bytes)
            if made_bytes > 0 and self.caps.remainder_bytes and not self._leaves_remainder():
                self._set_only_remainder(True)

    def forget(self, tenant: TenantId) -> None:
        self._at_will.discard(tenant)
        self.above.spend(tenant, -self._taken.get(tenant, 0))
        self.above.leave(tenant)
        self._new.discard(tenant)
        for kept in (self.left, self._marks, self._taken, self._looked_at):
            kept.pop(tenant, None)

    def expire(self) -> None:
        """End allowances that were not renewed in time. In place: the shortcut holds on to `left`."""
        self.above.expire(self._monotonic())
        if (self._marks or self._at_will) and not self.in_force:
            self._marks.clear()
            self._at_will.clear()
            self._new.clear()
            if self.caps.bounds_tenants:
                self._renew(list(self.left), even_shares(self._ledger.holdings()))
            else:
                self.left.clear()
                self._looked_at.clear()

    def keep_up(self) -> None:
        """Now and then: allowances end, and the pool has emptied or filled. O(classes x payers) with a remainder."""
        self.expire()
        caps = self.caps
        if caps.remainder_bytes:
            if caps.unclaimed_yields:
                self._yielding_bytes = sum(
                    held_bytes for held, held_bytes in self._ledger.holdings() if held.is_unclaimed
                )
            # A little more than that ends it, or it would begin and end all the time.
            spare_bytes = caps.remainder_bytes // 8 if self._only_remainder else 0
            self._set_only_remainder(not self._leaves_remainder(spare_bytes))

    def _look_again(self, tenant: TenantId, left: int) -> int:
        """What is left by the books as they are: more than was counted when the tenant freed something."""
        if tenant == NOBODY or self._looked_at.get(tenant) == self._ledger.sequence:
            return left
        if self._ledger.classes_of(tenant) > LOOKED_AT_CLASSES:
            return left  # the next mark tells, in a second: this look would hold up everybody else
        self._looked_at[tenant] = self._ledger.sequence
        ceiling = self._ceiling(tenant)
        if ceiling is None:
            return left
        share = even_shares(self._ledger.holdings_of_tenant(tenant)).get(tenant, 0)
        return max(left, ceiling - share - self._taken.get(tenant, 0))


@dataclass(frozen=True, slots=True)
class AllowanceState:
    """The books at one moment, and what each tenant, and those below each path, might still have made then."""

    ledger: Ledger
    classes: ClassView
    sequence: int
    unspent: Mapping[TenantId, int]
    unspent_above: Mapping[str, int]

    def shares(self) -> dict[TenantId, int]:
        """The even shares. Without the lock. O(classes x payers)."""
        return even_shares(self.ledger.holdings_of(self.classes))
