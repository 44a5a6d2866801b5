"""Putting limits back as their managers set them (I6): at stop, or after a controller that died for good."""

from collections.abc import Iterable

from controller.limits.types import KernelLimits, Order, managers_limits
from controller.persistence.state import Entry, State
from sharedfs.common.errors import HostFault


def restore(limits: KernelLimits, state: State, entries: Iterable[Entry]) -> list[str]:
    """Put back the limits of all `entries` and strike them from the journal. Blocks.

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
    state.forget(done)
    return faults


def _put_back(limits: KernelLimits, entry: Entry) -> str | None:
    account = limits.read(entry.cgroup)
    if account is None:
        return None
    now = account.limits
    return limits.apply(Order(entry.cgroup, now, managers_limits(entry.found, entry.ours, now))).refused
