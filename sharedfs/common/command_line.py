"""What the command lines share: exit codes, and one line for an error."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from sharedfs.common.errors import BrokenInvariant, CallerMistake, HostFault, first_error
from sharedfs.common.standard_streams import open_standard_streams

EXIT_OUR_FAILURE = 1
EXIT_CALLER_MISTAKE = 2

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def run_cli(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `command` and exit: 0; 2 with one line for the caller's mistake; 1 with one line for our failure."""
    open_standard_streams()
    try:
        # Without standalone mode click returns the code of its own exits, such as --help.
        code = command.main(arguments, prog_name=program, standalone_mode=False)
    except BaseException as error:
        code, message = _verdict(first_error(error), program)
        say_error(program, message)
    sys.exit(code if isinstance(code, int) else 0)


def say_error(program: str, message: str) -> None:
    """One line, whatever the message has in it."""
    click.echo(f"{program}: {' '.join(message.split())}", err=True)


def _verdict(error: BaseException, program: str) -> tuple[int, str]:
    """The exit code and the message for an error. What we did not foresee is raised again, with its traceback."""
    match error:
        case click.ClickException():
            context = error.ctx if isinstance(error, click.UsageError) else None
            where = program if context is None else context.command_path
            return EXIT_CALLER_MISTAKE, f"{error.format_message()} (see `{where} --help`)"
        case CallerMistake() | PermissionError():
            return EXIT_CALLER_MISTAKE, str(error)
        case HostFault() | OSError():
            return EXIT_OUR_FAILURE, str(error)
        case BrokenInvariant():
            return EXIT_OUR_FAILURE, f"broken invariant: {error}"
        case click.Abort() | KeyboardInterrupt():
            return EXIT_OUR_FAILURE, "interrupted"
    raise error
