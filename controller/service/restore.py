"""Putting limits back as their managers set them (I6): at stop, or after a controller that died for good."""

from collections.abc import Callable, Iterable

from controller.limits.types import KernelLimits, Order, managers_limits
from controller.persistence.state import Entry
from sharedfs.common.errors import HostFault
from sharedfs.linux.cgroups import CgroupRef


def restore(limits: KernelLimits, forget: Callable[[Iterable[CgroupRef]], None], entries: Iterable[Entry]) -> list[str]:
    """Put back the limits of all `entries` and have the journal `forget` those cgroups. Blocks.

    A limit that its manager changed meanwhile is left alone. Returns a line for each that could not be put back; those
    stay in the journal.
    """
    faults = []
    done = []
    for entry in entries:
        try:
            fault = _put_back(limits, entry)
        except HostFault as error:
            fault = str(error)
        if fault is None:
            done.append(entry.cgroup)
        else:
            faults.append(fault)
    forget(done)
    return faults


def _put_back(limits: KernelLimits, entry: Entry) -> str | None:
    account = limits.read(entry.cgroup)
    if account is None:
        return None
    now = account.limits
    return limits.apply(Order(entry.cgroup, now, managers_limits(entry.found, entry.ours, now))).refused
