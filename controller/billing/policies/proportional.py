"""Those who use a class pay for it in equal parts, whoever touched it first."""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.billing.books import SharingClass
from controller.billing.split import split
from sharedfs.kernel.cgroups import CgroupRef


@dataclass(frozen=True, slots=True)
class Proportional:
    name: str = "proportional"

    def charge(self, held: SharingClass, held_bytes: int) -> Mapping[CgroupRef, int]:
        return split(held_bytes, held.users)
