"""`sharedfs`: mount, unmount and look at pools. Thin: checks, calls, prints; imports nothing heavy to start."""

import json
import sys

import click

from sharedfs.command_line import CONTEXT, SizeType, run_cli


@click.group(no_args_is_help=False, context_settings=CONTEXT, epilog="Example: sharedfs mount /mnt/shared --size 2G")
@click.version_option(package_name="sharedfs")
def cli() -> None:
    """Shared scratch memory for many cgroups: each page is paid for by those who use it."""


@cli.command(epilog="Example: sharedfs mount /mnt/shared --size 2G")
@click.argument("mountpoint")
@click.option(
    "--size",
    "size_bytes",
    type=SizeType(of_memory=True),
    default="50%",
    show_default=True,
    help="Memory of the pool, such as 512M, 2G, or percent of the host's.",
)
@click.option("--name", help="Name of the pool.  [default: the mountpoint, with dashes]")
@click.option("--foreground", is_flag=True, help="Serve in this process until unmounted.")
@click.option(
    "--cgroup-parent",
    default="sharedfs",
    show_default=True,
    metavar="CGROUP",
    help='Make the pool\'s own cgroup below this one; "" serves from the cgroup we are in.',
)
@click.option(
    "--reserve",
    "reserve_bytes",
    type=SizeType(),
    default="1G",
    show_default=True,
    help="A file that is extended up to this size gets its memory at once (ftruncate before mmap).",
)
@click.option(
    "--idle",
    "idle_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds without a touch after which other users of a page pay for it.",
)
@click.option("--no-passthrough", is_flag=True, help="Do without FUSE passthrough, as kernels before 6.9 have to.")
@click.option("--ready-fd", type=int, hidden=True)
def mount(
    mountpoint: str,
    size_bytes: int,
    name: str | None,
    foreground: bool,
    cgroup_parent: str,
    reserve_bytes: int,
    idle_seconds: float,
    no_passthrough: bool,
    ready_fd: int | None,
) -> None:
    """Mount a pool at MOUNTPOINT, an empty directory. Returns when the mount serves requests."""
    from sharedfs import mounting, pools  # noqa: PLC0415
    from sharedfs.daemon import PoolOptions  # noqa: PLC0415

    place = mounting.resolve(mountpoint)
    options = PoolOptions(
        mountpoint=place,
        name=pools.name_for(place) if name is None else name,
        size_bytes=size_bytes,
        cgroup_parent=cgroup_parent,
        reserve_bytes=reserve_bytes,
        idle_seconds=idle_seconds,
        passthrough=not no_passthrough,
    )
    if foreground:
        mounting.mount_in_foreground(options, ready_fd)
    else:
        sys.exit(mounting.mount_in_background(options))


@cli.command(epilog="Example: sharedfs umount /mnt/shared")
@click.argument("mountpoint")
def umount(mountpoint: str) -> None:
    """Unmount the pool at MOUNTPOINT, also when its daemon has died. Its files are gone."""
    from sharedfs import mounting  # noqa: PLC0415

    mounting.umount(mounting.resolve(mountpoint))


@cli.command(epilog="Example: sharedfs status --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def status(as_json: bool) -> None:
    """Show the pools of this host: sizes, bytes resident, tenants, requests served, data path."""
    from sharedfs import status as statuses  # noqa: PLC0415

    found, silent = statuses.of_all_pools()
    if as_json:
        click.echo(json.dumps({"pools": [status.model_dump() for status in found]}, indent=2))
    else:
        statuses.show(found)
    for record in silent:
        click.echo(
            f"sharedfs: the daemon of {record.mountpoint} is dead: `sharedfs umount {record.mountpoint}` cleans up",
            err=True,
        )


def main() -> None:
    """The console script."""
    run_cli(cli, "sharedfs")
