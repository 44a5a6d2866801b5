"""`python -m deploy.demo`: make what the demonstration needs, run both acts, and put everything back.

Two stacks undo it, innermost first: `scratch` always, `lasting` (pool and controller) unless `--keep` was given and all
went well.
"""

import dataclasses
import json
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from deploy.demo import acts, interrupts, service, story
from deploy.demo.container_tenants import ContainerTenants
from deploy.demo.containers import installed_runtime
from deploy.demo.host import kernel_release
from deploy.demo.tenants import MakeTenants, Tenants, tenants_below
from sharedfs.api.types import PoolStatus
from sharedfs.common.command_line import CONTEXT, run_cli
from sharedfs.common.errors import CallerMistake, HostFault
from sharedfs.linux import syscalls
from sharedfs.linux.cgroups import find_memory_hierarchy
from sharedfs.linux.mount_flags import MS_NODEV, MS_NOSUID

KEPT_MOUNTPOINT = "/mnt/sharedfs"
_KEPT_SIZE_BYTES = 1 << 30
_DEMO_SIZE_BYTES = 256 << 20


@click.command(context_settings=CONTEXT)
@click.option("--keep", is_flag=True, help=f"Leave a pool at {KEPT_MOUNTPOINT} and the controller running.")
@click.option("--containers", is_flag=True, help="Real containers as tenants, with runc, crun or podman.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the numbers here.")
def demo(keep: bool, containers: bool, json_file: Path | None) -> None:
    """Show what sharedfs does, on real cgroups. `deploy/quickstart` installs what this needs."""
    if os.geteuid() != 0:
        raise CallerMistake("only root can mount filesystems and make cgroups: use sudo")
    runtime = installed_runtime() if containers else None
    os.environ.pop("PYTHONPATH", None)  # it was for finding us, not for what we start
    interrupts.catch()
    try:
        with ExitStack() as lasting:
            facts = _run(lasting, runtime, keep=keep)
            if keep:
                lasting.pop_all()
    except interrupts.Interrupted:
        raise click.Abort from None
    if json_file is not None:
        json_file.write_text(json.dumps(facts, indent=2) + "\n")
    if keep:
        story.kept(KEPT_MOUNTPOINT)
    else:
        story.put_back()


def _run(lasting: ExitStack, runtime: str | None, *, keep: bool) -> dict[str, Any]:
    hierarchy = find_memory_hierarchy()
    with ExitStack() as scratch:
        directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="sharedfs-demo-")))
        (scratch if keep else lasting).callback(directory.rmdir)
        service.tidy_run_directory(lasting)
        mountpoint = Path(KEPT_MOUNTPOINT) if keep else directory / "pool"
        name, size_bytes = (None, _KEPT_SIZE_BYTES) if keep else (f"demo-{os.getpid()}", _DEMO_SIZE_BYTES)
        made_pool = service.mount_pool(mountpoint, name, service.pool_size_bytes(size_bytes), lasting)
        controller_pid = service.start_controller(lasting)
        pool = service.pool_status(mountpoint)
        tmpfs = _mount_tmpfs(directory / "tmpfs", scratch)
        kind: MakeTenants = Tenants
        if runtime is not None:
            kind = partial(ContainerTenants, runtime=runtime, directories=[mountpoint, tmpfs])
        tenants = scratch.enter_context(tenants_below(hierarchy, f"/sharedfs-demo-{os.getpid()}", kind))
        facts = {"runtime": runtime} | _perform(tenants, mountpoint, tmpfs, pool, runtime)
        if keep:
            service.leave_notes(mountpoint if made_pool else None, controller_pid)
    return facts


def _perform(tenants: Tenants, mountpoint: Path, tmpfs: Path, pool: PoolStatus, runtime: str | None) -> dict[str, Any]:
    passthrough = pool.data_path.has_passthrough
    story.opening(tenants.hierarchy, pool, runtime, passthrough=passthrough)
    on_pool = acts.on_pool(tenants, mountpoint, "map" if passthrough else "read")
    story.of_pool(on_pool, "containers" if runtime else "cgroups", passthrough=passthrough)
    on_tmpfs = acts.on_tmpfs(tenants, tmpfs)
    story.of_tmpfs(on_tmpfs)
    crowds = (acts.crowd(tenants, mountpoint, "pool"), acts.crowd(tenants, tmpfs, "tmpfs"))
    story.of_crowds(*crowds)
    if crowds[0].zombies > acts.CROWD // 2:  # fewer may be the rest of a v1 host, whose counter it is
        raise HostFault(f"the pool left {crowds[0].zombies} zombie cgroups (I3): {crowds[0]}")
    story.side_by_side(on_pool, on_tmpfs, crowds)
    return {
        "kernel": kernel_release(),
        "cgroup_version": tenants.hierarchy.version.value,
        "data_path": pool.data_path,
        "file_bytes": acts.FILE_BYTES,
        "budget_bytes": acts.BUDGET_BYTES,
        "pool": _plain(on_pool),
        "tmpfs": _plain(on_tmpfs),
        "crowds": {"pool": _plain(crowds[0]), "tmpfs": _plain(crowds[1])},
    }


def _mount_tmpfs(directory: Path, scratch: ExitStack) -> Path:
    directory.mkdir()
    scratch.callback(directory.rmdir)
    with interrupts.whole_steps():
        options = f"size={2 * acts.FILE_BYTES},mode=700"
        syscalls.mount("sharedfs-demo", str(directory), "tmpfs", MS_NOSUID | MS_NODEV, options)
        scratch.callback(syscalls.umount, str(directory))
    return directory


def _plain(value: Any) -> Any:
    """Dataclasses and models as what JSON has."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


if __name__ == "__main__":
    run_cli(demo, "quickstart")
