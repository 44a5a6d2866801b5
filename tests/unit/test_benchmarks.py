"""Each benchmark starts and says what it does: docs cite them. What they call is checked by their types."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PROGRAMS = sorted(file.name for file in BENCH.glob("*.py") if os.access(file, os.X_OK))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_an_example(program: str) -> None:
    done = subprocess.run([sys.executable, BENCH / program, "--help"], capture_output=True, text=True, check=True)
    assert f"Example: bench/{program}" in " ".join(done.stdout.split())


def test_none_is_missing() -> None:
    assert {"mount.py", "namespace.py", "fairness.py", "ledger.py", "admission.py", "replay.py"} <= set(PROGRAMS)
