"""What `Ledger.set_mapped` was told last: a look for mappings mostly finds what the one before has found."""

from typing import NamedTuple

import numpy as np

from sharedfs.ledger.page_map import PageMap
from sharedfs.ledger.page_ranges import Runs
from sharedfs.ledger.tenant import TenantId


class Told(NamedTuple):
    """The ranges, and the file's births and resident pages afterwards."""

    runs: Runs
    births: int
    resident_pages: int


class ToldMappings:
    """By tenant and file."""

    def __init__(self) -> None:
        self._told: dict[TenantId, dict[int, Told]] = {}
        self.used_bytes = 0
        """Of the ranges."""

    def tell(self, file: int, tenant: TenantId, told: Told) -> None:
        self.forget(file, tenant)
        self._told.setdefault(tenant, {})[file] = told
        self.used_bytes += told.runs.nbytes

    def is_told(self, file: int, tenant: TenantId, runs: Runs, pages: PageMap) -> bool:
        """Whether it was the same, and the file has the same pages since. O(ranges + classes)."""
        told = self._told.get(tenant, {}).get(file)
        return told is not None and told[1:] == (pages.births, pages.resident_pages) and np.array_equal(told.runs, runs)

    def forget(self, file: int, tenant: TenantId) -> None:
        told = self._told.get(tenant, {}).pop(file, None)
        if told is not None:
            self.used_bytes -= told.runs.nbytes

    def forget_file(self, file: int) -> None:
        """O(tenants with mappings)."""
        for tenant in self._told:
            self.forget(file, tenant)

    def forget_tenant(self, tenant: TenantId) -> None:
        gone = self._told.pop(tenant, {})
        self.used_bytes -= sum(told.runs.nbytes for told in gone.values())

    def counted_bytes(self) -> int:
        """`used_bytes`, counted. O(files x tenants)."""
        return sum(told.runs.nbytes for by_file in self._told.values() for told in by_file.values())
