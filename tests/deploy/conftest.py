"""What the tests of the deployment scripts share: the scripts run as a user runs them, in directories of our own."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def places() -> Iterator[dict[str, str]]:
    """An environment that moves run-time and state directories to where the host's own service is not seen."""
    with tempfile.TemporaryDirectory(prefix="sf-deploy-", dir="/tmp") as directory:
        files = {"SHAREDFS_RUN_DIR": "run", "SHAREDFS_STATE_DIR": "state", "SHAREDFS_HOST_LOCK": "host.lock"}
        yield os.environ | {variable: f"{directory}/{file}" for variable, file in files.items()}


@pytest.fixture
def script(places: dict[str, str]) -> Script:
    """Runs a script of deploy/ and returns what came of it."""

    def run(name: str, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [REPOSITORY / "deploy" / name, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=places,
            cwd="/",
            user=user,
            timeout=110,
            check=False,
        )

    return run
