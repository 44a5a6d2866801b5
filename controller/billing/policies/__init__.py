"""Who pays for a class: one small interface, a file each, so that rules can be compared on the same books.

A policy answers for one class at a time, so a bill costs time in classes, never in pages.
"""

from collections.abc import Mapping
from typing import Protocol

from controller.billing.books import SharingClass
from sharedfs.kernel.cgroups import CgroupRef


class Policy(Protocol):
    @property
    def name(self) -> str:
        """How the configuration names it."""

    def charge(self, held: SharingClass, held_bytes: int) -> Mapping[CgroupRef, int]:
        """What each tenant pays of `held_bytes`; what nobody pays is unclaimed."""
