"""A copy of the journal's lines on the cgroups themselves: limits can be put back when the journal is lost.

A cgroup whose limits the controller changes has the xattr `trusted.sharedfs.limits`: what its manager had set, and
every value that may be the controller's. It goes with the cgroup. Only who has CAP_SYS_ADMIN on the host can read or
write it, so no container forges one. The journal is what counts: that a cgroup takes no mark is no fault.

    {"database": path, "found": limits, "ours": [limits, ...]}
    limits: {"max": bytes or null, "high": ..., "swap": ...}; before 0.1 a list of the three, in this order

A mark that cannot be read, as of a later version, is none.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.limits.cgroup_files import open_cgroup, write_file
from controller.limits.types import Limits
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef, MemoryHierarchy, readable

_NAME = "trusted.sharedfs.limits"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the manager of a cgroup had set when the controller came, and every value that may be the controller's."""

    found: Limits
    ours: tuple[Limits, ...]


class Marks:
    """Those of the controller with this database, by its path: several may run on a host, each for its own pools."""

    def __init__(self, hierarchy: MemoryHierarchy, database: Path) -> None:
        self._hierarchy = hierarchy
        self._database = str(database)

    def put(self, cgroup: CgroupRef, found: Limits, ours: Sequence[Limits]) -> None:
        """Mark a cgroup. One that takes no mark has none afterwards, rather than one that is out of date."""
        mark = {"database": self._database, "found": _told(found), "ours": [_told(limits) for limits in set(ours)]}
        with suppress(HostFault), open_cgroup(self._hierarchy, cgroup, write_file) as directory:
            if directory is not None:
                directory.mark(_NAME, json.dumps(mark).encode())

    def remove(self, cgroups: Iterable[CgroupRef]) -> None:
        for cgroup in cgroups:
            with suppress(HostFault), open_cgroup(self._hierarchy, cgroup, write_file) as directory:
                if directory is not None:
                    directory.unmark(_NAME)

    def found(self) -> dict[CgroupRef, Mark]:
        """What the marks on this host's cgroups tell. O(cgroups)."""
        marks = {}
        for name, _, _ in os.walk(self._hierarchy.mount):
            place = Path(name)
            with suppress(OSError, ValueError, KeyError, TypeError):
                mark = json.loads(os.getxattr(place, _NAME))
                if mark["database"] == self._database:
                    path = "/" + readable(os.fsencode(place.relative_to(self._hierarchy.mount)))
                    told = Mark(_limits(mark["found"]), tuple(map(_limits, mark["ours"])))
                    marks[CgroupRef(path, place.stat().st_ino)] = told
        return marks


def _told(limits: Limits) -> dict[str, int | None]:
    return {"max": limits.max_bytes, "high": limits.high_bytes, "swap": limits.swap_bytes}


def _limits(told: Any) -> Limits:
    return Limits(told["max"], told["high"], told["swap"]) if isinstance(told, dict) else Limits(*told)
