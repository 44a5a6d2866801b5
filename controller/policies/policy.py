"""Who pays for a page: one interface, a file for each answer, so that answers can be compared on the same pages.

A policy is a set of pure rules about one page, and there are two ways to apply it:

- *On live books* it is asked `charge` for each sharing class: who pays what of these bytes. Nothing else is needed
  for a policy whose answer follows from who owns a page and who uses it. Those with a `history` have no such answer.
- *On a trace* (the lab) it also says what becomes of a page at each event, and `charge` is asked for each sort of page.

Either way a bill costs time in sorts of pages, and is rounded once for each. The rules know nothing of files, clocks or
arrays: `controller/lab/engine.py` applies them to millions of pages at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from controller.policies.page_state import Kind, Page, Place
from sharedfs.linux.cgroups import CgroupRef

Parts = Mapping[CgroupRef, int]
"""What each cgroup pays, in bytes. What nobody pays is not in it."""


class Held(Protocol):
    """Pages that are alike: a sharing class of the live books, or a `Page`."""

    @property
    def owner(self) -> CgroupRef | None: ...
    @property
    def payers(self) -> frozenset[CgroupRef]: ...
    @property
    def mapped(self) -> frozenset[CgroupRef]: ...


class NeedsHistory(Exception):
    """The live books do not say what this policy would have to know: it can be replayed only."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What policies that weigh accesses look at: how often each tenant accessed each file, and its budget in bytes.

    `accesses` fade; `latest` are those since the last bill.
    """

    accesses: Mapping[int, Mapping[CgroupRef, int]] = field(default_factory=dict)
    latest: Mapping[int, Mapping[CgroupRef, int]] = field(default_factory=dict)
    budgets: Mapping[CgroupRef, int] = field(default_factory=dict)


class Policy(ABC):
    """`conserves`: the parts of a resident page's bytes are never more than these bytes, so that a bill adds up (I1).

    `history`: what would have to be known of a page and live books do not say. `ages`: touches are forgotten after a
    while. `rules`: policies that name the same ones make the same of a page, and differ in the bill only.
    """

    name: ClassVar[str]
    conserves: ClassVar[bool] = True
    history: ClassVar[str] = ""
    ages: ClassVar[bool] = False
    rules: ClassVar[str] = ""

    # -- who pays

    @abstractmethod
    def charge(self, held: Held, held_bytes: int) -> Parts:
        """What each tenant pays of `held_bytes`; what nobody pays is unclaimed. Raises NeedsHistory."""

    # -- what becomes of a page; each returns an equal page when nothing changes

    @abstractmethod
    def allocate(self, page: Page, tenant: CgroupRef) -> Page:
        """`tenant` wrote to a page, which made it resident if it was not."""

    @abstractmethod
    def touch(self, page: Page, tenant: CgroupRef) -> Page:
        """`tenant` read or wrote a page that is there."""

    def map(self, page: Page, tenant: CgroupRef) -> Page:
        """`tenant` has the page in a page table from now on."""
        return self.touch(page, tenant)

    def unmap(self, page: Page, tenant: CgroupRef) -> Page:
        return page

    def swap(self, page: Page) -> Page:
        """Memory was short, and the kernel wrote the page to swap."""
        if page.place is not Place.RESIDENT or page.kind is not Kind.SHMEM:
            return page
        return page._replace(place=Place.SWAPPED)

    def free(self, page: Page) -> Page:
        """Truncated, punched or deleted: nobody is charged for it any more."""
        return page.absent()

    @abstractmethod
    def exit(self, page: Page, tenant: CgroupRef) -> Page:
        """`tenant` was removed. Asked for pages only that name it (`Page.tenants`)."""

    def visits(self, page: Page, tenant: CgroupRef) -> bool:
        """Whether `exit` has to look at each such page, and not at the sort of page once."""
        return False

    def age(self, page: Page) -> Page:
        """A generation has passed."""
        return page
