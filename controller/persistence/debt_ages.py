"""Since when there are debts, kept by the host's uptime: neither a restart nor a set clock makes one younger."""

import logging
import time
from collections.abc import Callable, Mapping

from controller.persistence.state import State
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef

log = logging.getLogger(__name__)


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KeptDebts:
    """Between the planner, whose clock begins anew with each process, and the state. Calls block on the disk."""

    def __init__(self, state: State, clock: Callable[[], float] = uptime) -> None:
        self._state = state
        self._clock = clock
        self._since = state.debts()

    def since(self, now_seconds: float) -> dict[CgroupRef, float]:
        """What is kept, on a clock that says `now_seconds` now."""
        shift = now_seconds - self._clock()
        return {cgroup: since + shift for cgroup, since in self._since.items()}

    def are_kept(self, since: Mapping[CgroupRef, float]) -> bool:
        """Whether these are the debts that are kept already. Reads nothing."""
        return self._since.keys() == since.keys()

    def keep(self, now_seconds: float, since: Mapping[CgroupRef, float]) -> None:
        """These are the debts there are."""
        shift = self._clock() - now_seconds
        new = {cgroup: began + shift for cgroup, began in since.items() if cgroup not in self._since}
        paid = self._since.keys() - since.keys()
        self._since = {cgroup: began for cgroup, began in self._since.items() if cgroup in since} | new
        try:
            self._state.keep_debts(new, paid)
        except HostFault as fault:
            log.warning("the age of debts is not kept: %s", fault)
