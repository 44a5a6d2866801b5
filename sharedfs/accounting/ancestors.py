"""How much the tenants at and below one cgroup may still make together: `quota.py` for what is above tenants.

A tenant may have as many cgroups below its own as it likes, and each is a tenant for as long as it lives. What they
make is due at the cgroup above, when the controller has seen it: half a second later. So what is left there is counted
here, by the path of that cgroup, as each of them makes pages; and what they leave when they are gone counts there, too
(`SharingClass.heir`). Call everything with the books' lock held.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sharedfs.ledger.holdings import even_shares
from sharedfs.ledger.ledger import Ledger
from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux.cgroups import chain

FIRST_SECONDS = 5.0
"""So long counts what was read of a limit when a tenant came, while the controller says nothing of it."""
RENEWAL_SECONDS = 1.0
"""So long count earlier marks when the controller tells new ones: what is not among these has no mark any more."""
LOOKED_AT_CLASSES = 1024
_LOOKED_AT_TENANTS = 64


@dataclass(slots=True)
class _Mark:
    """Until where the shares of all at and below a cgroup may grow; None while the controller has not told.

    `looked_at` is the ledger's sequence when what is left was last worked out anew.
    """

    until_bytes: int | None
    expires_seconds: float
    looked_at: int = -1


class AncestorAllowances:
    """`taken` is what tenants have taken for pages that are being made (`Allowances`)."""

    def __init__(self, ledger: Ledger, taken: Mapping[TenantId, int]) -> None:
        self.left: dict[str, int] = {}
        """Bytes by path; a cgroup that is not listed bounds nobody. Also for `ops/fastpath.c`."""
        self.of: dict[TenantId, tuple[str, ...]] = {}
        """The path of each tenant and those above it. Also for `ops/fastpath.c`."""
        self._ledger = ledger
        self._taken = taken
        self._below: dict[str, set[TenantId]] = {}
        self._marks: dict[str, _Mark] = {}

    # -- who is below what -------------------------------------------------------------------------------------------

    def join(self, tenant: TenantId, path: str) -> None:
        """A tenant is at `path` from now on. O(depth)."""
        paths = self.of.get(tenant)
        if paths is not None and paths[:1] == (path,):
            return
        self.leave(tenant)
        self.of[tenant] = tuple(chain(path))
        for place in self.of[tenant]:
            self._below.setdefault(place, set()).add(tenant)

    def leave(self, tenant: TenantId) -> None:
        for place in self.of.pop(tenant, ()):
            below = self._below[place]
            below.discard(tenant)
            if not below:
                del self._below[place]

    def below(self, places: Collection[str]) -> dict[str, list[TenantId]]:
        """The tenants at and below each of these paths, as they are now."""
        return {place: list(self._below.get(place, ())) for place in places}

    # -- marks -------------------------------------------------------------------------------------------------------

    def begin(self, tenant: TenantId, rooms: Mapping[str, int], now_seconds: float) -> None:
        """A tenant came, and so much was free above it. What is known of a cgroup already counts more."""
        self.expire(now_seconds)
        for place in self.of.get(tenant, ())[1:]:
            if place in rooms and place not in self._marks:
                self._marks[place] = _Mark(None, now_seconds + FIRST_SECONDS)
                self.left[place] = rooms[place]

    def put(
        self,
        marks: Mapping[str, int],
        shares: Mapping[str, int],
        unspent: Mapping[str, int],
        sequence: int,
        expires_seconds: float,
    ) -> None:
        """New marks. `shares` and `unspent` are of one earlier moment, when the ledger had this `sequence`.

        What was made since is counted on.
        """
        for place, until_bytes in marks.items():
            made = 0
            if place in self.left:
                unspent_now = self.left[place] + self._taken_below(place)
                made = max(0, unspent.get(place, unspent_now) - unspent_now)
            self._marks[place] = _Mark(until_bytes, expires_seconds, sequence)
            self.left[place] = until_bytes - shares.get(place, 0) - made - self._taken_below(place)

    def doubt(self, expires_seconds: float) -> None:
        """Marks that are not renewed by then end, whatever they said."""
        for mark in self._marks.values():
            mark.expires_seconds = min(mark.expires_seconds, expires_seconds)

    def unspent(self) -> dict[str, int]:
        """What was left and is not made yet, for a later `put`. O(tenants below marks)."""
        return {place: left + self._taken_below(place) for place, left in self.left.items()}

    def expire(self, now_seconds: float) -> None:
        """End marks that were not renewed in time. O(marks)."""
        for place in [place for place, mark in self._marks.items() if mark.expires_seconds <= now_seconds]:
            del self._marks[place], self.left[place]

    # -- growth ------------------------------------------------------------------------------------------------------

    def allow(self, tenant: TenantId, needed_bytes: int, now_seconds: float, *, is_new: bool) -> bool:
        """Whether all cgroups at and above a tenant leave it so much. O(depth), as long as they do.

        `is_new`: the controller has not told anything of it yet. What it has told counts more than a first mark.
        """
        for place in self.of.get(tenant, ()):
            left = self.left.get(place)
            if left is not None and left < needed_bytes:
                mark = self._marks[place]
                if mark.expires_seconds <= now_seconds:
                    del self._marks[place], self.left[place]
                elif mark.until_bytes is None and not is_new:
                    continue
                elif self._look_again(place) < needed_bytes:
                    return False
        return True

    def spend(self, tenant: TenantId, made_bytes: int) -> None:
        """Pages were taken for `tenant`, or given back. O(depth)."""
        if self.left:
            for place in self.of.get(tenant, ()):
                if place in self.left:
                    self.left[place] -= made_bytes

    def freed(self, held: SharingClass, freed_bytes: int) -> None:
        """Pages of a class are gone from their file: whoever paid for them may make others. O(payers x depth)."""
        if self.left:
            payers = held.payers
            for payer in payers:
                self.spend(payer, -(freed_bytes // len(payers)))

    def bounds(self, tenant: TenantId) -> bool:
        """Whether a cgroup at or above a tenant has a mark."""
        return any(place in self.left for place in self.of.get(tenant, ()))

    def _look_again(self, place: str) -> int:
        """What is left by the books as they are: more than was counted when somebody freed something."""
        mark, below = self._marks[place], self._below.get(place, ())
        if (
            mark.until_bytes is not None
            and mark.looked_at != self._ledger.sequence
            and len(below) <= _LOOKED_AT_TENANTS
            and sum(self._ledger.classes_of(tenant) for tenant in below) <= LOOKED_AT_CLASSES
        ):
            mark.looked_at = self._ledger.sequence
            share = sum(even_shares(self._ledger.holdings_of_tenant(tenant)).get(tenant, 0) for tenant in below)
            self.left[place] = max(self.left[place], mark.until_bytes - share - self._taken_below(place))
        return self.left[place]

    def _taken_below(self, place: str) -> int:
        taken, below = self._taken, self._below.get(place)
        return sum(part for tenant, part in taken.items() if tenant in below) if taken and below else 0
