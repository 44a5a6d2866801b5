"""How often each tenant accessed each file: for policies that weigh accesses, and for one of the yardsticks."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sharedfs.linux.cgroups import CgroupRef


class Accesses:
    """Counts by file and tenant, the latter by slots. `lately` is since `start_over`, `weights` fade by halves."""

    def __init__(self, files: int, slots: int) -> None:
        self.weights = np.zeros((files, slots), dtype=np.int64)
        self.lately = np.zeros_like(self.weights)

    def count(self, files: NDArray[np.int32], slots: NDArray[np.int32], times: NDArray[np.int64]) -> None:
        """`times` below 1 count as 1. O(events)."""
        keys = files.astype(np.int64) * self.weights.shape[1] + slots
        np.add.at(self.lately.reshape(-1), keys, np.maximum(1, times))

    def start_over(self) -> None:
        self.weights += self.lately
        self.lately[:] = 0

    def fade(self) -> None:
        """A generation has passed."""
        self.weights >>= 1

    def forget(self, slot: int) -> None:
        self.weights[:, slot] = self.lately[:, slot] = 0


def by_tenant(counts: NDArray[np.int64], tenants: Mapping[int, CgroupRef]) -> dict[int, dict[CgroupRef, int]]:
    """The counts that are not 0, with tenants in place of their slots. O(counts)."""
    found: dict[int, dict[CgroupRef, int]] = {}
    for file, slot in np.argwhere(counts).tolist():
        found.setdefault(file, {})[tenants[slot]] = int(counts[file, slot])
    return found
