"""What the two command lines share: exit codes, one line for an error, sizes."""

import sys
from typing import NoReturn

import click
import psutil

from sharedfs.errors import BrokenInvariant, CallerMistake, HostFault
from sharedfs.units import parse_size

EXIT_OUR_FAILURE = 1
EXIT_CALLER_MISTAKE = 2

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class SizeType(click.ParamType[int]):
    """A size in bytes, with K, M, G or T; where it is one `of_memory`, also percent of the host's."""

    name = "size"

    def __init__(self, *, of_memory: bool = False) -> None:
        self._of_memory = of_memory

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        try:
            if self._of_memory and text.endswith("%"):
                return int(psutil.virtual_memory().total) * parse_size(text[:-1]) // 100
            return parse_size(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def run_cli(command: click.Command, program: str) -> NoReturn:
    """Run `command` and exit: 0; 2 with one line for the caller's mistake; 1 with one line for our failure."""
    try:
        code = command.main(prog_name=program, standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        code = _fail(program, "interrupted", 130)
    except click.ClickException as error:
        hint = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else program
        code = _fail(program, f"{' '.join(error.format_message().split())} (see `{hint} --help`)", EXIT_CALLER_MISTAKE)
    except CallerMistake as error:
        code = _fail(program, str(error), EXIT_CALLER_MISTAKE)
    except (HostFault, OSError) as error:
        code = _fail(program, str(error), EXIT_OUR_FAILURE)
    except BrokenInvariant as error:
        code = _fail(program, f"broken invariant, please report: {error}", EXIT_OUR_FAILURE)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(program: str, message: str, code: int) -> int:
    click.echo(f"{program}: {message}", err=True)
    return code
