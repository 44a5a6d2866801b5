"""What the books know about a page: who owns it, who uses it, and how that changes.

Pages with the same owner and the same users are one line in the books, a `SharingClass`. Its *payers* are the owner,
who allocated the pages, for as long as it lives, and the users, for as long as they use them (I10). For pages whose
owner is gone and that nobody uses, the *heir* pays, if there is one. A tenant uses a page when it touched it lately or
has it mapped. "Lately" is two generations: a touch puts a tenant into `recent`; each
`aged` moves `recent` to `older` and forgets who was in `older` only. So a touch counts for one to two ageing periods,
and no page needs a time of its own.

The rules below are pure, and return an equal class when they change nothing. The whole ledger rests on two properties:

- A rule for tenant U looks at U alone, and adds or removes U alone. So it commutes with `without(T)` for every other T,
  and what was memoised about U stays true when T exits (`steps` relies on it).
- No rule of a tenant changes `foreign`: pages move between classes, charges do not move. `recharged` is the pool's own:
  it says that a charge has moved. The owner, and the heir, change by `without`, by `handed_to`, because the operator
  says so, and by `charged_to`, because the kernel does.
"""

from dataclasses import dataclass, replace

from sharedfs.ledger.tenant import NOBODY, TenantId

NO_TENANTS: frozenset[TenantId] = frozenset()


@dataclass(frozen=True, slots=True)
class SharingClass:
    """Pages with one owner and the same users.

    `owner` allocated the pages, or they were handed to it; NOBODY when it has exited. Then `heir` has them, the nearest
    cgroup with a limit that the owner was below; NOBODY where there is none. `recent` and `older` touched them, in this
    generation and in the one before, and are disjoint; `mapped` have them in a page table, and may be in either as
    well. `foreign` pages were charged by the kernel to the owner's own cgroup, not to the pool: a mapped hole (I2).
    """

    owner: TenantId
    recent: frozenset[TenantId] = NO_TENANTS
    older: frozenset[TenantId] = NO_TENANTS
    mapped: frozenset[TenantId] = NO_TENANTS
    foreign: bool = False
    heir: TenantId = NOBODY

    @property
    def users(self) -> frozenset[TenantId]:
        """Those who touched the pages lately or have them mapped."""
        return self.recent | self.older | self.mapped

    @property
    def payers(self) -> frozenset[TenantId]:
        """The users, and the owner unless it is NOBODY; where there are none, the heir. Empty: nobody pays."""
        if self.owner != NOBODY:
            return self.users | {self.owner}
        return self.users or (NO_TENANTS if self.heir == NOBODY else frozenset((self.heir,)))

    @property
    def is_unclaimed(self) -> bool:
        """Whether the owner is gone and nobody uses the pages. An heir may pay for them."""
        return self.owner == NOBODY and not (self.recent or self.older or self.mapped)

    @property
    def tenants(self) -> frozenset[TenantId]:
        """Those whose exit changes this class."""
        return self.users | ({self.owner, self.heir} - {NOBODY})

    @classmethod
    def charged_by(cls, tenant: TenantId, *, foreign: bool = False) -> "SharingClass":
        """New pages: whoever allocates owns and uses them. By NOBODY, they are unclaimed from the start."""
        return cls(tenant, NO_TENANTS if tenant == NOBODY else frozenset((tenant,)), foreign=foreign)

    def touched_by(self, tenant: TenantId) -> "SharingClass":
        """`tenant` read or wrote. NOBODY leaves no trace."""
        if tenant == NOBODY or tenant in self.recent:
            return self
        return replace(self, recent=self.recent | {tenant}, older=self.older - {tenant})

    def mapped_by(self, tenant: TenantId) -> "SharingClass":
        """`tenant` has the pages in a page table, which says nothing about when it last used them."""
        if tenant == NOBODY or tenant in self.mapped:
            return self
        return replace(self, mapped=self.mapped | {tenant})

    def unmapped_by(self, tenant: TenantId) -> "SharingClass":
        """`tenant` has them no longer in a page table.

        It could use them until this moment, so this counts as a touch: otherwise `munmap` before each ageing would be
        a way not to pay.
        """
        if tenant not in self.mapped:
            return self
        return replace(self, mapped=self.mapped - {tenant}).touched_by(tenant)

    def recharged(self) -> "SharingClass":
        """The kernel charges the pages to the pool from now on (I2). Who owns and who uses them stays."""
        return replace(self, foreign=False) if self.foreign else self

    def charged_to(self, tenant: TenantId) -> "SharingClass":
        """The kernel charges foreign pages to `tenant`'s own cgroup, NOBODY for one that is gone: it is their owner."""
        return replace(self, owner=tenant, heir=NOBODY) if self.foreign else self

    def handed_to(self, tenant: TenantId) -> "SharingClass":
        """`tenant` owns the pages from now on; NOBODY: they are unclaimed as soon as they have no user, with no heir.

        Foreign pages stay whose they are: the owner is the one whose own cgroup the kernel charges for them.
        """
        return self if self.foreign else replace(self, owner=tenant, heir=NOBODY)

    def without(self, tenant: TenantId, heir: TenantId = NOBODY) -> "SharingClass":
        """`tenant` has exited; `heir`, another one that lives, has what it owned and had as an heir. O(users)."""
        if tenant == NOBODY or tenant not in self.tenants:
            return self
        return SharingClass(
            owner=NOBODY if self.owner == tenant else self.owner,
            recent=self.recent - {tenant},
            older=self.older - {tenant},
            mapped=self.mapped - {tenant},
            foreign=self.foreign,
            heir=heir if tenant in (self.owner, self.heir) else self.heir,
        )

    def aged(self) -> "SharingClass":
        """A generation has passed: who touched before it, and not in it, is a user no more.

        The owner pays all the same: a writer does not stop paying for what it keeps in memory by never reading it
        again. Where it is gone, the pages are unclaimed when the last user is.
        """
        if not self.recent and not self.older:
            return self
        return replace(self, recent=NO_TENANTS, older=self.recent)

    def reduced(self) -> "SharingClass":
        """One of the payers pays for all: the owner where it lives, else the first user; by a touch or by its mapping.

        For books that would otherwise have too many classes. Nobody pays for what it neither allocated nor used (I10),
        and pages that have a payer keep one.
        """
        if not self.users:
            return self
        payer = frozenset((min(self.users) if self.owner == NOBODY else self.owner,))
        if payer & self.mapped:
            return replace(self, recent=NO_TENANTS, older=NO_TENANTS, mapped=payer)
        return replace(self, recent=payer & self.recent, older=payer & self.older, mapped=NO_TENANTS)

    def used_as(self, other: "SharingClass") -> "SharingClass":
        """The same owner's pages, used by those who use `other` and in the same way."""
        return replace(self, recent=other.recent, older=other.older, mapped=other.mapped)

    def united(self, other: "SharingClass") -> "SharingClass":
        """Used by those who use either; who touched one of them in this generation touched both."""
        recent = self.recent | other.recent
        return replace(
            self, recent=recent, older=(self.older | other.older) - recent, mapped=self.mapped | other.mapped
        )
