"""Whole programs in tests: run within a bound, and ended with all their children whatever happens."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

Argument = str | Path


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is not installed; `tests/run` installs them all."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextmanager
def started(
    *command: Argument, cwd: Path | None = None, user: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A program that runs during the block; what is left of it and of its children is killed at the end."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        user=user,
        group=None if user is None else "nogroup",
        extra_groups=None if user is None else [],
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process.pid)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def kill_all(pid: int) -> None:
    """SIGKILL a session's leader, its process group, and its descendants that left both."""
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        for process in [leader, *leader.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def finish(
    *command: Argument,
    cwd: Path | None = None,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> tuple[int, str]:
    """Run a program to its end: its exit code, and all that it wrote. TimeoutExpired after `seconds`."""
    with started(*command, cwd=cwd, user=user, environment=environment) as process:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output


def run(
    *command: Argument,
    cwd: Path | None = None,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> str:
    """Run a program that has to succeed; what it wrote."""
    code, output = finish(*command, cwd=cwd, user=user, environment=environment, seconds=seconds)
    assert code == 0, f"{' '.join(map(str, command))} ended with {code}: {output[-4000:]}"
    return output
