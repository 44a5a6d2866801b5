"""What the controller must know of tenants after a restart: what they took on themselves, and what they need.

It is written every five seconds, when it has changed. What is so lost of the growth of a share counts as inherited.
"""

import logging
from collections.abc import Mapping

from controller.persistence.state import State
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef

log = logging.getLogger(__name__)

KEPT_SECONDS = 5.0


class KnownTenants:
    """Between the planner and the state. `keep` blocks on the disk."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._kept = state.own(), state.needs()
        self._kept_seconds = float("-inf")

    def are_due(self, now_seconds: float) -> bool:
        return now_seconds - self._kept_seconds >= KEPT_SECONDS

    def keep(
        self, now_seconds: float, own: Mapping[tuple[str, CgroupRef], int], needs: Mapping[CgroupRef, int]
    ) -> None:
        self._kept_seconds = now_seconds
        known = dict(own), dict(needs)
        if known == self._kept:
            return
        try:
            self._state.keep_known(*known)
            self._kept = known
        except HostFault as fault:
            log.warning("what tenants took on themselves is not kept: %s", fault)
