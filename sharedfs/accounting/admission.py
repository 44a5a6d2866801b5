"""Who may make how many pages: the controller's marks come in here, and each growth asks here first (`quota.py`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sharedfs.accounting.caps import Caps
from sharedfs.accounting.core import Core
from sharedfs.ledger.tenant import TenantId
from sharedfs.linux.cgroups import CgroupRef


class Admission:
    def __init__(self, core: Core) -> None:
        self._lock = core.lock
        self._ledger = core.ledger
        self._page_bytes = core.page_bytes
        self._tenants = core.tenants
        self._allowances = core.allowances
        self.left: Mapping[TenantId, int] = core.allowances.left
        """Bytes that tenants may still make resident; who is not listed may make any."""

    @property
    def refused(self) -> int:
        """How often a tenant was refused, since the start."""
        return self._allowances.refused

    @contextmanager
    def admitted(self, inode: int, start: int, end: int, tenant: TenantId) -> Iterator[None]:
        """While `tenant` makes bytes `start`..`end` (exclusive) of a file resident, and books what it made.

        Raises OSError (EDQUOT) before anything is done where its allowance does not cover what is absent.
        """
        taken_bytes = self.take(inode, start, end, tenant)
        try:
            yield
        finally:
            self.give_back(tenant, taken_bytes)

    def take(self, inode: int, start: int, end: int, tenant: TenantId) -> int:
        """As `admitted`, for what ends in another thread: how much was taken, to be given back then."""
        if tenant not in self.left or start >= end:
            return 0
        pages = [(start // self._page_bytes, (end - 1) // self._page_bytes)]
        with self._lock:
            absent = sum(last - first + 1 for first, last in self._ledger.absent(inode, pages))
            self._allowances.take(tenant, absent * self._page_bytes)
        return absent * self._page_bytes

    def give_back(self, tenant: TenantId, taken_bytes: int) -> None:
        if taken_bytes:
            with self._lock:
                self._allowances.give_back(tenant, taken_bytes)

    def put(
        self,
        sequence: int,
        marks: Mapping[CgroupRef, int | None],
        valid_seconds: float,
        above: Mapping[str, int] | None = None,
    ) -> bool:
        """`Allowances.put` for those of the cgroups that are tenants. The shares are worked out without the lock.

        `above` are marks for all tenants at and below a path. False, with nothing changed, when later marks are here.
        """
        above = {} if above is None else above
        with self._lock:
            of_tenants = {
                tenant: until_bytes
                for cgroup, until_bytes in marks.items()
                if (tenant := self._tenants.find(cgroup.inode)) is not None
            }
            state, below = self._allowances.state(), self._allowances.above.below(above)
        shares = state.shares()
        shares_below = {path: sum(shares.get(tenant, 0) for tenant in tenants) for path, tenants in below.items()}
        with self._lock:
            is_latest = self._allowances.put(sequence, of_tenants, valid_seconds, state, shares)
            if is_latest:
                self._allowances.put_above(above, valid_seconds, state, shares_below)
            return is_latest

    def keep_up(self, caps: Caps) -> None:
        """Now and then: the pool's caps are these, and allowances end. `Allowances.bind` and `keep_up`."""
        with self._lock:
            if caps != self._allowances.caps:
                self._allowances.bind(caps, [tenant.id for tenant in self._tenants.live()])
            self._allowances.keep_up()
