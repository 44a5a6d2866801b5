"""A pool and a controller for the demonstration, made with the commands a user has, and taken away again.

What is there already is used and left. With `--keep` what we made stays; notes beside the controller's socket tell
`deploy/uninstall` what that is:

    RUN/quickstart/controller    process id and start time (in ticks since boot, proc_pid_stat(5))
    RUN/quickstart/mountpoint    of the pool
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree

import psutil

from controller.api.client import read
from controller.api.types import Bills
from deploy.demo.host import wait_until
from deploy.demo.interrupts import whole_steps
from sharedfs.api.types import PoolStatus
from sharedfs.common import paths
from sharedfs.common.errors import BrokenInvariant, CallerMistake, HostFault
from sharedfs.pool import registry

_COMMAND_SECONDS = 60.0
_START_SECONDS = 20.0
_STOP_SECONDS = 30.0


def command(name: str, *arguments: str) -> str:
    """Run one of our console scripts; its output. Raises what its exit code says, with its own words."""
    done = _run(name, *arguments)
    if done.returncode == 0:
        return done.stdout
    fault = CallerMistake if done.returncode == 2 else HostFault
    raise fault(done.stderr.strip().removeprefix(f"{name}: ") or f"{name} ended with {done.returncode}")


def bills() -> Bills:
    """What `sharedctl bills --json` says. Raises BrokenInvariant where it contradicts I1."""
    told = read(Bills, json.loads(command("sharedctl", "bills", "--json")))
    shares_bytes = sum(tenant.share_bytes for tenant in told.tenants)
    if shares_bytes + told.unclaimed_bytes != told.pool_resident_bytes:
        raise BrokenInvariant(
            f"I1: shares {shares_bytes} + unclaimed {told.unclaimed_bytes} is not resident {told.pool_resident_bytes}"
        )
    return told


def mount_pool(mountpoint: Path, name: str | None, size_bytes: int, resources: ExitStack) -> bool:
    """Have a pool at `mountpoint`; whether we made it. Undone by `resources`."""
    record = registry.record_at(str(mountpoint))
    if record is not None:
        if registry.is_served(record):
            return False
        command("sharedfs", "umount", str(mountpoint))  # its keeper died
    if not mountpoint.exists():
        mountpoint.mkdir(parents=True)
        resources.callback(_ignoring_errors(mountpoint.rmdir))
    options = ["--size", str(size_bytes)] + ([] if name is None else ["--name", name])
    with whole_steps():
        command("sharedfs", "mount", str(mountpoint), *options)
        resources.callback(command, "sharedfs", "umount", str(mountpoint))
    return True


def pool_status(mountpoint: Path) -> PoolStatus:
    told = json.loads(command("sharedfs", "status", "--json"))["pools"]
    found = next((pool for pool in told if pool["mountpoint"] == str(mountpoint)), None)
    if found is None:
        raise HostFault(f"`sharedfs status` does not know the pool at {mountpoint}")
    return PoolStatus.model_validate(found)


def start_controller(resources: ExitStack) -> int | None:
    """Have a controller; its process id when we started it, None when one runs already. Undone by `resources`."""
    if paths.controller_socket().exists() and _run("sharedctl", "bills", "--json").returncode == 0:
        return None
    state = paths.state_directory()
    if not state.exists():
        resources.callback(_ignoring_errors(lambda: rmtree(state)))
    log = paths.run_directory() / "controller.log"
    with whole_steps(), log.open("ab") as output:
        process = subprocess.Popen(
            [_script("sharedctl"), "run"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
        resources.callback(_stop_controller, process, log)

    def serves() -> bool:
        if process.poll() is not None:
            raise HostFault(f"the controller ended with {process.returncode}: {_last_line(log)}")
        return paths.controller_socket().exists() and _run("sharedctl", "bills", "--json").returncode == 0

    wait_until(serves, "the controller serves", _START_SECONDS)
    return process.pid


def tidy_run_directory(resources: ExitStack) -> None:
    """At the end, remove from RUN what was not there before. Call it before anything of ours is started."""
    run = paths.run_directory()
    ours = [path for path in (run / "controller.log", run / "controller.lock") if not path.exists()]
    made = [path for path in (run / "pools", run) if not path.exists()]
    run.mkdir(parents=True, exist_ok=True)

    def tidy() -> None:
        for path in ours:
            path.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):  # another pool lives there by now
                path.rmdir()

    resources.callback(tidy)


def leave_notes(mountpoint: Path | None, controller_pid: int | None) -> None:
    """Tell `deploy/uninstall` what we made and leave. What an earlier run noted stays."""
    notes = paths.run_directory() / "quickstart"
    notes.mkdir(mode=0o700, exist_ok=True)
    if mountpoint is not None:
        (notes / "mountpoint").write_text(f"{mountpoint}\n")
    if controller_pid is not None:
        after_name = Path(f"/proc/{controller_pid}/stat").read_text().rpartition(") ")[2].split()
        (notes / "controller").write_text(f"{controller_pid} {after_name[19]}\n")


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A session of its own: Ctrl-C is for us, who then end things in order.
    return subprocess.run(
        [_script(name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        start_new_session=True,
        cwd="/",
        check=False,
    )


def _stop_controller(process: subprocess.Popen[bytes], log: Path) -> None:
    """SIGTERM puts the limits back; should it hang, end it and put them back ourselves."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = -signal.SIGKILL
    paths.controller_socket().unlink(missing_ok=True)
    if code == 0:
        return
    command("sharedctl", "restore")
    if code != -signal.SIGTERM:  # which ends it when it has not yet begun to listen for signals
        raise HostFault(f"the controller ended with {code}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def _ignoring_errors(action: Callable[[], None]) -> Callable[[], None]:
    def attempt() -> None:
        with suppress(OSError):
            action()

    return attempt


def pool_size_bytes(wanted_bytes: int) -> int:
    """`wanted_bytes`, or half of the host's memory where that is less."""
    return min(wanted_bytes, int(psutil.virtual_memory().total) // 2)
