"""The caller's mistakes that the API tells apart; any other `CallerMistake` is input that makes no sense."""

from sharedfs.common.errors import CallerMistake


class UnknownName(CallerMistake):
    """There is no such tenant, cgroup, pool or file."""


class NotOursToSet(CallerMistake):
    """A tenant's manager decides this, or the kernel has no place for it."""
