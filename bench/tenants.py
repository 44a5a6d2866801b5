"""Cgroups for benchmarks, and processes in them from their first page on."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sharedfs.linux.cgroups import find_memory_hierarchy

_JOIN_AND_EXEC = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@contextmanager
def cgroups(*names: str) -> Iterator[list[Path]]:
    """The directories of cgroups of these names, below one of our own; all are removed at the end."""
    base = find_memory_hierarchy().directory(f"sharedfs-bench-{os.getpid()}")
    made = [base / name for name in names]
    with ExitStack() as resources:
        for directory in (base, *made):
            directory.mkdir()
            resources.callback(directory.rmdir)
        yield made


def joining(cgroup: Path, *command: str) -> list[str]:
    """A command that enters the cgroup and runs `command`."""
    return ["sh", "-c", _JOIN_AND_EXEC, str(cgroup), *command]
