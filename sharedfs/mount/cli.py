"""`sharedfs`: mount, unmount and look at pools. Thin: checks, calls, prints; imports nothing heavy to start."""

import sys
from typing import Any

import click
import psutil

from sharedfs.common.command_line import CONTEXT, run_cli
from sharedfs.common.errors import CallerMistake
from sharedfs.linux.huge_pages import WITHIN_SIZE
from sharedfs.pool.options import Asked, parse, read_setting, written


class SettingType(click.ParamType[Any]):
    """The value of a mount option, by the option's name."""

    def __init__(self, setting: str, metavar: str) -> None:
        self.name = metavar
        self._setting = setting

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        try:
            return read_setting(self._setting, str(value), psutil.virtual_memory().total)
        except CallerMistake as mistake:
            self.fail(str(mistake), param, ctx)


@click.group(no_args_is_help=False, context_settings=CONTEXT, epilog="Example: sharedfs mount /mnt/shared --size 2G")
@click.version_option(package_name="sharedfs")
def cli() -> None:
    """Shared scratch memory for many cgroups: each page is paid for by those who use it."""


@cli.command(
    epilog="Example: sharedfs mount /mnt/shared --size 2G, or: sharedfs mount /mnt/shared -o size=2g,noatime; "
    "and then: sharedfs mount /mnt/shared -o remount,size=4g"
)
@click.argument("mountpoint")
@click.option(
    "--size",
    "size_bytes",
    type=SettingType("size", "size"),
    help="Memory of the pool, such as 512M, 2G, or percent of the host's.  [default: 50%]",
)
@click.option("--name", help="Name of the pool.  [default: the mountpoint, with dashes]")
@click.option(
    "-o",
    "words",
    multiple=True,
    metavar="OPTION,...",
    help="Mount options as mount(8) takes them: size=, reserve=, idle=, unclaimed=, grace=, spill_dir=, "
    "tenant_cap=, remainder=, cgroup_parent=, tenant=, reads=, huge=, no_passthrough, mode=, uid=, gid=, nr_inodes=, "
    "and flags such as ro, noexec, noatime, suid, dev; `remount` changes a mounted pool.",
)
@click.option("--foreground", is_flag=True, help="Stay in the foreground until unmounted.")
@click.option("--check", is_flag=True, help="Check the options and the host, mount nothing, and say what is wrong.")
@click.option(
    "--cgroup-parent",
    type=SettingType("cgroup_parent", "cgroup"),
    help='Make the pool\'s own cgroup below this one; "" serves from the cgroup we are in.  [default: sharedfs]',
)
@click.option(
    "--reserve",
    "reserve_bytes",
    type=SettingType("reserve", "size"),
    help="A file that is extended up to this size gets its memory at once (ftruncate before mmap).  [default: 1G]",
)
@click.option(
    "--idle",
    "idle_seconds",
    type=SettingType("idle", "seconds"),
    help="Seconds after its last touch for which a tenant pays for a page that another one allocated.  [default: 600]",
)
@click.option(
    "--reads",
    type=SettingType("reads", "exact|fast"),
    help="exact: each read is attributed to its pages. fast: the kernel serves reads of files opened for reading only, "
    "at tmpfs's speed, and who has one open pays for all of it.  [default: exact]",
)
@click.option(
    "--tenant",
    "tenant_rules",
    type=SettingType("tenant", "rule[:rule...]"),
    help="Who is one tenant: container, job (Slurm's), pod (Kubernetes' or podman's), unit (systemd's), or what a "
    "pattern such as /batch/* matches of a cgroup's path. The first rule that knows a path decides; else, or with "
    "leaf, the tenant is the process's own cgroup.  [default: container:job]",
)
@click.option(
    "--tenant-cap",
    "tenant_cap",
    type=SettingType("tenant_cap", "size|percent"),
    help="How far the share of one tenant may grow, such as 2G or 50%: beyond that it gets EDQUOT.  [default: no cap]",
)
@click.option(
    "--remainder",
    type=SettingType("remainder", "size|percent"),
    help="So much of the pool stays for tenants whose share is less than that, however much the others take, such as "
    "10%.  [default: 0]",
)
@click.option(
    "--unclaimed",
    type=SettingType("unclaimed", "keep|delete|spill|yield"),
    help="What becomes of files that no live cgroup pays for and nobody has open: they are kept, or after the grace "
    "removed, or moved to --spill-dir and back when they are opened; or (yield) removed, the longest unclaimed first, "
    "when there is no space left.  [default: keep]",
)
@click.option(
    "--grace",
    "grace_seconds",
    type=SettingType("grace", "seconds"),
    help="Seconds that an unclaimed file stays before --unclaimed acts.  [default: 3600]",
)
@click.option(
    "--spill-dir",
    "spill_directory",
    type=SettingType("spill_dir", "directory"),
    help="Where --unclaimed spill puts files: a directory on a disk, in which one for this pool is made.",
)
@click.option(
    "--huge",
    flag_value=WITHIN_SIZE,
    default=None,
    type=str,
    help="Make huge pages where files get their memory at once or are mapped: faster mapped access. -o huge= has "
    "tmpfs's other words for it.  [default: never]",
)
@click.option(
    "--no-passthrough",
    "passthrough",
    flag_value=False,
    default=None,
    type=bool,
    help="Do without FUSE passthrough, as kernels before 6.9 have to.",
)
def mount(
    mountpoint: str,
    name: str | None,
    words: tuple[str, ...],
    foreground: bool,
    check: bool,
    **settings: object,
) -> None:
    """Mount a pool at MOUNTPOINT, an empty directory. Returns when the mount serves requests.

    An option that has a name of its own wins over the same one in -o.
    """
    from sharedfs.mount import mounting  # noqa: PLC0415
    from sharedfs.pool import registry  # noqa: PLC0415

    memory_bytes = psutil.virtual_memory().total
    in_words = parse(",".join(words), memory_bytes)
    by_name = {field: value for field, value in settings.items() if value is not None}
    asked = Asked(in_words.settings | by_name, in_words.cleared, in_words.set, in_words.remount)
    place = mounting.resolve(mountpoint)
    if asked.remount:
        if name is not None or foreground:
            raise CallerMistake("a remount changes options only: leave out --name and --foreground")
        mounting.remount(place, asked, keep_flags=mounting.ALL_FLAGS)
        return
    options = asked.options(place, registry.name_for(place) if name is None else name, memory_bytes)
    if check:
        mounted = registry.record_at(place)
        mounting.check(options, handed_down=mounted is not None and mounted.name == options.name)
        click.echo(f"ok: {place} with {written(options)}")
    elif foreground:
        mounting.mount_in_foreground(options)
    else:
        sys.exit(mounting.mount_in_background(options))


@cli.command(epilog="Example: sharedfs umount /mnt/shared")
@click.argument("mountpoint")
@click.option("--if-dead", "only_dead", is_flag=True, help="Do nothing unless its processes have died.")
@click.option("--lazy", is_flag=True, help="Take the mount away here; the pool ends when its last user has gone.")
@click.option("--force", is_flag=True, help="End the pool now, whoever uses it: what they do then fails with ENOTCONN.")
def umount(mountpoint: str, only_dead: bool, lazy: bool, force: bool) -> None:
    """Unmount the pool at MOUNTPOINT, also when its keeper has died. Its files are gone.

    A pool that is in use, here or in a container, is left as it is, and its users are named (exit code 2).
    """
    from sharedfs.mount import mounting, unmounting  # noqa: PLC0415

    if lazy and force:
        raise CallerMistake("--lazy and --force exclude each other: choose one")
    manner = unmounting.Manner.LAZY if lazy else unmounting.Manner.FORCE if force else unmounting.Manner.PLAIN
    told = unmounting.umount(mounting.resolve(mountpoint), manner, only_dead=only_dead)
    if told:
        click.echo(f"{mountpoint}: {told}")


@cli.command(epilog="Example: sharedfs reload /mnt/shared")
@click.argument("mountpoint")
def reload(mountpoint: str) -> None:
    """Serve the pool at MOUNTPOINT by the installed version, after an upgrade. Its users notice nothing."""
    from sharedfs.mount import mounting  # noqa: PLC0415

    mounting.reload(mounting.resolve(mountpoint))


@cli.command(epilog="Example: sharedfs status --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def status(as_json: bool) -> None:
    """Show the pools of this host: sizes, bytes resident, tenants, requests served, data path."""
    from sharedfs.mount import status as statuses  # noqa: PLC0415
    from sharedfs.pool import registry  # noqa: PLC0415

    found = statuses.of_all_pools()
    if as_json:
        click.echo(found.as_json())
    else:
        statuses.show(found)
    for record in found.dead:
        click.echo(
            f"sharedfs: the pool at {record.mountpoint} is dead: `sharedfs umount {record.mountpoint}` cleans up",
            err=True,
        )
    for name in registry.damaged():
        click.echo(f"sharedfs: {registry.damage(name)}", err=True)


def main() -> None:
    """The console script."""
    run_cli(cli, "sharedfs")
