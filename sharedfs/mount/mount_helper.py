"""`mount.fuse.sharedfs`: what mount(8) calls for `mount -t fuse.sharedfs NAME DIRECTORY -o OPTIONS` and for fstab.

The interface and the exit codes are mount(8)'s ("EXTERNAL HELPERS", "EXIT STATUS"); all else is `sharedfs mount`.

mount(8) before 2.39 keeps the words `suid` and `dev` to itself, for it takes them to be everybody's defaults. They are
not ours, so we look for them where it read them: on its command line and in the fstab.
"""

import getopt
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import psutil

from sharedfs.common.command_line import CONTEXT, say_error
from sharedfs.common.errors import CallerMistake, HostFault, first_error
from sharedfs.common.standard_streams import open_standard_streams
from sharedfs.linux.mount_flags import ATIME_FLAGS, MS_NODEV, MS_NOSUID
from sharedfs.linux.mountinfo import unescape
from sharedfs.mount import mounting
from sharedfs.pool.options import FILESYSTEM_TYPE, Asked, parse

PROGRAM = "mount.fuse.sharedfs"

EXIT_INVOCATION = 1
EXIT_SYSTEM = 2
EXIT_INTERRUPTED = 8
EXIT_MOUNT_FAILURE = 32

# A remount says all flags that are to be, but for these: of the first two mount(8) may have kept the words, and the
# kernel leaves the others as they are when there is no word about them.
_KEPT_BY_REMOUNT = MS_NOSUID | MS_NODEV | ATIME_FLAGS

_SHORT_OF_MOUNT = "aBcfFhilL:mMno:O:rRsT:t:U:vVwN:"
# fmt: off
_LONG_OF_MOUNT = (
    "all", "bind", "fake", "fork", "fstab=", "help", "internal-only", "label=", "make-private", "make-rprivate",
    "make-rshared", "make-rslave", "make-runbindable", "make-shared", "make-slave", "make-unbindable", "mkdir", "move",
    "namespace=", "no-canonicalize", "no-mtab", "options=", "options-mode=", "options-source=", "options-source-force",
    "onlyonce", "rbind", "read-only", "read-write", "show-labels", "source=", "target=", "target-prefix=", "test-opts=",
    "types=", "uuid=", "verbose", "version",
)
# fmt: on


@click.command(context_settings=CONTEXT, epilog="Example: mount -t fuse.sharedfs NAME /mnt/shared -o size=2g,noatime")
@click.argument("name")
@click.argument("mountpoint")
@click.option("-o", "words", multiple=True, metavar="OPTION,...", help="Mount options; docs/mounting.md lists them.")
@click.option("-f", "fake", is_flag=True, help="Check everything, mount nothing.")
@click.option("-n", "_no_mtab", is_flag=True, help="Nothing: no mtab is written anyway.")
@click.option("-s", "sloppy", is_flag=True, help="Let pass mount options that we do not know.")
@click.option("-v", "verbose", is_flag=True, help="Say what was mounted.")
@click.option("-t", "_kind", type=click.Choice([FILESYSTEM_TYPE, "sharedfs"]), help="The type; there is one.")
def helper(
    name: str,
    mountpoint: str,
    words: tuple[str, ...],
    fake: bool,
    _no_mtab: bool,
    sloppy: bool,
    verbose: bool,
    _kind: str | None,
) -> int:
    """Mount the pool NAME at MOUNTPOINT, an empty directory. mount(8) calls this for the type fuse.sharedfs."""
    memory_bytes = psutil.virtual_memory().total
    try:
        mounting.require_root()
        place = mounting.resolve(mountpoint)
        kept = words_kept_by_mount(_command_line_of_parent(), place)
        asked = parse(",".join([*kept, *words]), memory_bytes, sloppy=sloppy)
    except CallerMistake as mistake:
        say_error(PROGRAM, str(mistake))
        return EXIT_INVOCATION
    code = _remount(place, asked, fake=fake) if asked.remount else _mount(place, name, asked, memory_bytes, fake=fake)
    if verbose and code == 0:
        click.echo(f"{PROGRAM}: {name} {'would be' if fake else 'is'} mounted on {place}")
    return code


def _mount(place: str, name: str, asked: Asked, memory_bytes: int, *, fake: bool) -> int:
    options = asked.options(place, name, memory_bytes)
    if fake:
        mounting.check(options)
        return 0
    # A daemon that could not start has said why, and ended as `sharedfs` ends.
    return {0: 0, 2: EXIT_MOUNT_FAILURE}.get(mounting.mount_in_background(options), EXIT_SYSTEM)


def _remount(place: str, asked: Asked, *, fake: bool) -> int:
    if not fake:
        mounting.remount(place, asked, keep_flags=_KEPT_BY_REMOUNT)
    return 0


def words_kept_by_mount(command_line: Sequence[str], place: str) -> list[str]:
    """The words on set-id programs and devices that mount(8), with this command line, was given for `place`.

    None when it was not mount(8), or what it was given cannot be told: then our own, stricter defaults hold.
    """
    if not command_line or os.path.basename(command_line[0]) != "mount":
        return []
    try:
        options, operands = getopt.gnu_getopt(list(command_line[1:]), _SHORT_OF_MOUNT, _LONG_OF_MOUNT)
    except getopt.GetoptError:
        return []
    given = [value for option, value in options if option in ("-o", "--options")]
    if len(operands) < 2:  # the rest stands in the fstab
        files = [value for option, value in options if option in ("-T", "--fstab")]
        given = _options_in_fstab(Path(files[-1] if files else "/etc/fstab"), place) + given
    return [word for word in ",".join(given).split(",") if word in ("suid", "nosuid", "dev", "nodev")]


def _options_in_fstab(fstab: Path, place: str) -> list[str]:
    with suppress(OSError):
        for line in fstab.read_bytes().splitlines():
            fields = line.split()
            if len(fields) >= 4 and not fields[0].startswith(b"#"):
                mountpoint, kind, options = map(unescape, fields[1:4])
                if kind == FILESYSTEM_TYPE and mounting.resolve(mountpoint) == place:
                    return [options]
    return []


def _command_line_of_parent() -> list[str]:
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def main() -> None:
    """The console script."""
    open_standard_streams()
    try:
        code = helper.main(prog_name=PROGRAM, standalone_mode=False)
    except BaseException as error:
        code = _exit_code(first_error(error))
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: BaseException) -> int:
    """Says what is wrong in one line. What we did not foresee is raised again, with its traceback."""
    match error:
        case click.ClickException():
            say_error(PROGRAM, f"{error.format_message()} (see `{PROGRAM} --help`)")
            return EXIT_INVOCATION
        case CallerMistake():
            say_error(PROGRAM, str(error))
            return EXIT_MOUNT_FAILURE
        case HostFault() | OSError():
            say_error(PROGRAM, str(error))
            return EXIT_SYSTEM
        case click.Abort() | KeyboardInterrupt():
            say_error(PROGRAM, "interrupted")
            return EXIT_INTERRUPTED
    raise error
