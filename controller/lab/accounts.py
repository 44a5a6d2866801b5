"""Everybody who can be charged in a trace: its tenants, dead or alive, and the groups above them, as columns."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from controller.lab.events import NO_LIMIT
from controller.policies.page_state import ROOT
from sharedfs.linux.cgroups import CgroupRef

Scalar = TypeVar("Scalar", bound=np.generic)


class Accounts:
    """Numbers for cgroups, and what is known of each. All meters of a replay count by these numbers."""

    def __init__(self) -> None:
        self.cgroups: list[CgroupRef] = []
        self._numbers: dict[CgroupRef, int] = {}
        self.is_tenant = np.zeros(16, dtype=bool)
        self.alive = np.zeros(16, dtype=bool)
        """Tenants that have started and not exited."""
        self.limit_bytes = np.zeros(16, dtype=np.int64)
        self.root = self.number(ROOT)

    def __len__(self) -> int:
        return len(self.cgroups)

    @property
    def capacity(self) -> int:
        return len(self.alive)

    def number(self, cgroup: CgroupRef) -> int:
        number = self._numbers.get(cgroup)
        if number is None:
            number = self._numbers[cgroup] = len(self.cgroups)
            self.cgroups.append(cgroup)
            if number >= self.capacity:
                self.is_tenant = doubled(self.is_tenant)
                self.alive = doubled(self.alive)
                self.limit_bytes = doubled(self.limit_bytes)
            self.limit_bytes[number] = np.iinfo(np.int64).max
        return number

    def start(self, tenant: CgroupRef, limit_bytes: int) -> None:
        number = self.number(tenant)
        self.is_tenant[number] = self.alive[number] = True
        if limit_bytes != NO_LIMIT:
            self.limit_bytes[number] = limit_bytes

    def exit(self, tenant: CgroupRef) -> None:
        self.alive[self.number(tenant)] = False

    def budgets(self) -> dict[CgroupRef, int]:
        """The limits of living tenants that have one."""
        limited = self.alive & (self.limit_bytes != np.iinfo(np.int64).max)
        return {self.cgroups[number]: int(self.limit_bytes[number]) for number in np.flatnonzero(limited).tolist()}


def doubled(column: NDArray[Scalar]) -> NDArray[Scalar]:
    """Twice as long, with zeros."""
    return np.concatenate((column, np.zeros_like(column)))
