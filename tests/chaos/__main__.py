"""`python -m tests.chaos --minutes 60 --seed 7`: the chaos job for people, as root. Prints its figures as JSON."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.job import Chaos, Figures, pool_bytes
from tests.support.mount import mounted_pool
from tests.support.tenants import tenants_below


def main() -> int:
    """0 when nothing went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Random tenants and hostile ones on a pool of their own, whose daemon and controller are killed at "
        "random.",
        epilog="Example: python -m tests.chaos --minutes 60 --seed 7",
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long  [default: 1]")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run  [default: another one each time]")
    parser.add_argument("--tenants", type=int, default=3, help="how many honest ones work at a time  [default: 3]")
    parser.add_argument("--hostile", type=int, default=2, help="how many are hostile at a time  [default: 2]")
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    name = f"sharedfs-chaos-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as directory:
        os.environ |= {"SHAREDFS_RUN_DIR": f"{directory}/run", "SHAREDFS_STATE_DIR": f"{directory}/state"}
        os.environ["SHAREDFS_HOST_LOCK"] = f"{directory}/host.lock"
        options = ("--size", str(pool_bytes(chosen.tenants, chosen.hostile)), "--cgroup-parent", f"{name}-pools")
        with mounted_pool(Path(directory) / "mnt", name, *options) as pool, tenants_below(name) as tenants:
            chaos = Chaos(pool, tenants, seed, chosen.tenants, chosen.hostile)
            figures = chaos.run(chosen.minutes * 60, _progress())
            print(figures, flush=True)
    return 1 if figures.errors else 0


def _progress():  # type: ignore[no-untyped-def]
    said = time.monotonic()

    def say(figures: Figures) -> None:
        nonlocal said
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{figures.kills} kills, {figures.tenants} tenants, {figures.operations} operations", file=sys.stderr)

    return say


if __name__ == "__main__":
    sys.exit(main())
