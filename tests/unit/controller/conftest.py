"""The fakes live beside the contract that holds them to the kernel."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))
