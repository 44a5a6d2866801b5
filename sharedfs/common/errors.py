"""Errors named for the party at fault, so that the exit code and the message follow from the type.

`CallerMistake`   the user asked for something that cannot be: exit code 2, one line that says what to do.
`HostFault`       the kernel, a manager or a file on the host did not do its part: exit code 1.
`BrokenInvariant` our own books contradict themselves: never caught, the service stops and says so.
"""

from errno import EMFILE, ENFILE

SCARCE = frozenset({EMFILE, ENFILE})
"""The errno of who finds that the process, or the host, has no descriptor left."""


class CallerMistake(Exception):
    """What was asked for cannot be done; the message says what to do instead."""


class HostFault(Exception):
    """The host refused or misbehaved; the message carries the path and what was found there."""


class BrokenInvariant(Exception):
    """One of I1..I10 does not hold; the message carries the state that broke it."""


def first_error(error: BaseException) -> BaseException:
    """The error that a person is to read: nurseries wrap it in groups, and what fell over after it adds nothing."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
