"""`sharedctl`: what tenants pay, why, and the controller itself. Thin: it asks the API and prints the answer.

Exit codes: 0, 2 for the caller's mistake (one line on stderr), 1 for our failure. Nothing heavy is imported until a
command needs it, because people wait for `sharedctl bills`.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sharedfs.common.command_line import CONTEXT, run_cli
from sharedfs.common.errors import CallerMistake
from sharedfs.common.units import format_size, parse_duration, parse_size

PATH_HELP = "PATH is a file on a pool, by its name or as `sharedctl explain` shows it, with escapes such as \\n."
TENANT_HELP = "TENANT is a cgroup's path as `sharedctl bills` shows it, or the directory of the cgroup."

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
tenant_argument = click.argument("tenant")


class LazyGroup(click.Group):
    """Knows that there is a lab, and imports it when somebody asks for it: it takes numpy and pyarrow."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "lab"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name != "lab":
            return super().get_command(context, name)
        from controller.lab.cli import lab  # noqa: PLC0415

        return lab


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings=CONTEXT)
def cli() -> None:
    """What each tenant pays for the shared memory that it uses, and the controller that settles it.

    Example: sharedctl bills
    """


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), help="Default: /etc/sharedfs/controller.toml, if there.")
@click.option("--dry-run", is_flag=True, help="Write no limit; the log and `sharedctl plan` tell what would be.")
@click.option(
    "--check", is_flag=True, help="Check the configuration and the host, change nothing, and say what is wrong."
)
def run(config: Path | None, dry_run: bool, check: bool) -> None:
    """Run the controller in the foreground until SIGTERM or Ctrl-C, then put all limits back.

    Example: sharedctl run --config deploy/controller.toml
    """
    import logging  # noqa: PLC0415

    from controller.service import config as configuration  # noqa: PLC0415
    from sharedfs.common.logs import log_to_stderr  # noqa: PLC0415

    loaded = configuration.load(config)
    _need_root("run the controller")
    from controller.service import run as service  # noqa: PLC0415

    if check:
        click.echo(service.check(loaded))
        return
    log_to_stderr()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request, twice a second and pool
    service.run(loaded, dry_run=dry_run)


@cli.command()
def restore() -> None:
    """Put back the limits that a controller left lowered when it died for good.

    Example: sharedctl restore
    """
    _need_root("restore limits")
    from controller.service import run as service  # noqa: PLC0415

    click.echo(f"limits put back: {service.restore_limits()}")


@cli.command(epilog=TENANT_HELP)
@tenant_argument
@click.argument("budget", metavar="BYTES|clear")
@click.option("--report-only", is_flag=True, help="Write no limit for TENANT; its bill tells what is over the budget.")
def budget(tenant: str, budget: str, report_only: bool) -> None:
    """Give TENANT a budget where its manager set no memory limit, or take it back.

    Example: sharedctl budget /tenants/a 512M
    """
    from controller.api.client import ask, read  # noqa: PLC0415
    from controller.api.types import BudgetState  # noqa: PLC0415

    if budget == "clear":
        done = read(BudgetState, ask("DELETE", "/v1/budget", {"tenant": tenant}))
        click.echo(f"{done.tenant}: no budget")
        return
    try:
        budget_bytes = parse_size(budget)
    except ValueError as error:
        raise CallerMistake(f"{error}; `sharedctl budget {tenant} clear` takes a budget back") from None
    order = {"budget_bytes": budget_bytes, "report_only": report_only}
    done = read(BudgetState, ask("PUT", "/v1/budget", {"tenant": tenant}, order))
    when = ", for reports only" if report_only else "" if done.known else ", enforced from when it uses a pool"
    click.echo(f"{done.tenant}: budget {format_size(budget_bytes)}{when}")


@cli.command(epilog=TENANT_HELP)
@click.argument("tenant", required=False)
@click.argument("part", metavar="[BYTES|PERCENT|clear]", required=False)
@click.option("--pool", help="In this pool only; else in every pool that has no cap of its own for TENANT.")
@as_json
def cap(tenant: str | None, part: str | None, pool: str | None, as_json: bool) -> None:
    """Bound how far the share of TENANT, with all cgroups below it, may grow in a pool; without arguments, list caps.

    Beyond its cap it gets EDQUOT. Percents are of the pool's size. What it has already stays.

    Example: sharedctl cap /tenants/a 50% --pool scratch
    """
    from controller.api.client import ask  # noqa: PLC0415

    if tenant is None:
        _answer("/v1/caps", as_json)
        return
    if part is None:
        raise CallerMistake("say how much, such as 2G or 50%, or clear to take a cap back")
    where = {"tenant": tenant} | ({} if pool is None else {"pool": pool})
    done = ask("DELETE", "/v1/cap", where) if part == "clear" else ask("PUT", "/v1/cap", where, {"cap": part})
    _show("/v1/caps", done, as_json)


@cli.command()
@as_json
def bills(as_json: bool) -> None:
    """Every tenant's share, budget and limit.

    Example: sharedctl bills --json
    """
    _answer("/v1/bills", as_json)


@cli.command()
@click.argument("pools", metavar="[POOL]...", nargs=-1)
@click.option("--repair", is_flag=True, help="Have the daemons put right what can be put right.")
@as_json
def audit(pools: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Compare the books of POOL, or of all pools, page by page with files, the kernel's charges and page tables.

    Prints each difference that stays for four seconds. Exit code 1 when there is one. It needs no controller.

    Example: sharedctl audit scratch
    """
    from controller.cli.audit import run as run_audit  # noqa: PLC0415

    _need_root("audit a pool")
    if not run_audit(pools, repair=repair, as_json=as_json):
        sys.exit(1)


@cli.command()
@as_json
def plan(as_json: bool) -> None:
    """The writes to limit files of the last settlement: done, put off, or what would be (`sharedctl run --dry-run`).

    Example: sharedctl plan --json
    """
    _answer("/v1/plan", as_json)


@cli.command(epilog=TENANT_HELP)
@tenant_argument
@click.option(
    "--files", type=click.IntRange(0, 100_000), default=1000, show_default=True, help="List so many files at most."
)
@as_json
def explain(tenant: str, files: int, as_json: bool) -> None:
    """What the share of TENANT is made of, by file and by sharing class. Files with the largest shares come first.

    Example: sharedctl explain /tenants/a
    """
    _answer("/v1/explain", as_json, tenant=tenant, files=str(files))


@cli.command()
@as_json
def status(as_json: bool) -> None:
    """How the controller stands with each pool: how old its books are, and what went wrong.

    Example: sharedctl status
    """
    _answer("/v1/health", as_json)


@cli.command(epilog=PATH_HELP)
@click.argument("path")
@as_json
def users(path: str, as_json: bool) -> None:
    """Who shares the file at PATH, and what each pays for it.

    Example: sharedctl users /mnt/pool/model.bin
    """
    from controller.cli.pool_paths import on_pool  # noqa: PLC0415

    _answer("/v1/users", as_json, path=on_pool(path))


@cli.command(epilog=f"{PATH_HELP} {TENANT_HELP}")
@click.argument("path")
@click.argument("tenant", metavar="TENANT|nobody")
@click.option("--recursive", is_flag=True, help="PATH is a directory: hand over all files below it.")
@as_json
def claim(path: str, tenant: str, recursive: bool, as_json: bool) -> None:
    """Hand the file at PATH over: TENANT owns the pages that it has now, and pays for them as long as it lives.

    With `nobody` they are unclaimed as soon as nobody uses them. Those who use them go on paying their part. What this
    adds to TENANT beyond its budget is debt. Pages that are made later belong to whoever makes them.

    Example: sharedctl claim /mnt/pool/model.bin /tenants/a
    """
    from controller.api.client import CLAIM_SECONDS, ask, read  # noqa: PLC0415
    from controller.api.types import Handover  # noqa: PLC0415
    from controller.cli.pool_paths import on_pool  # noqa: PLC0415

    query = {"path": on_pool(path), "recursive": str(recursive).lower()}
    if tenant != "nobody":
        query["tenant"] = tenant
    answer = ask("PUT", "/v1/owner", query, timeout_seconds=CLAIM_SECONDS)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    done = read(Handover, answer)
    files = f"{done.files} file{'' if done.files == 1 else 's'}"
    click.echo(f"{done.tenant or 'nobody'} owns {format_size(done.handed_bytes)} in {files} of {done.path}")
    if done.foreign_bytes:
        click.echo(f"{format_size(done.foreign_bytes)} stay with their owner: the kernel charges them to it")
    if done.debt_bytes:
        click.echo(
            f"{done.tenant} is over its budget: {format_size(done.debt_bytes)} are debt "
            "until it frees memory or its budget is raised"
        )


@cli.command(epilog=TENANT_HELP)
@click.argument("tenant", required=False)
@click.option("--since", metavar="DURATION", help="Only the last 90s, 15m, 1h, 7d.  [default: all that is kept]")
@as_json
def history(tenant: str | None, since: str | None, as_json: bool) -> None:
    """What each tenant, or TENANT alone, paid for over time, by pool.

    Example: sharedctl history /tenants/a --since 1h
    """
    query = {} if tenant is None else {"tenant": tenant}
    if since is not None:
        try:
            query["since_seconds"] = str(parse_duration(since))
        except ValueError as error:
            raise CallerMistake(str(error)) from None
    _answer("/v1/history", as_json, **query)


@cli.command()
@as_json
def unclaimed(as_json: bool) -> None:
    """The files with memory that no live cgroup uses: who made them, since when nobody uses them, and where they are.

    Example: sharedctl unclaimed --json
    """
    _answer("/v1/unclaimed", as_json)


@cli.command()
@click.option("--payer", help="Also show `designated`, as if this tenant had been named. Default: the active payer.")
@as_json
def policies(payer: str | None, as_json: bool) -> None:
    """Every tenant's bill under each policy that the live books are enough for, side by side.

    Example: sharedctl policies --payer /tenants/a
    """
    _answer("/v1/policies", as_json, **({} if payer is None else {"payer": payer}))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--pool", help="Default: the only one there is.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Default: until Ctrl-C or SIGTERM.")
def record(file: Path, pool: str | None, seconds: float | None) -> None:
    """Write what happens on a pool to FILE, a trace that `sharedctl lab replay` can bill under every policy.

    Example: sharedctl record day.parquet --seconds 3600
    """
    import signal  # noqa: PLC0415
    import time  # noqa: PLC0415
    from threading import Event  # noqa: PLC0415

    from controller.lab.recorder import only_pool  # noqa: PLC0415
    from controller.lab.recorder import record as write_trace  # noqa: PLC0415
    from controller.lab.trace_file import need_pyarrow  # noqa: PLC0415

    _need_root("record a pool")
    need_pyarrow()
    enough = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: enough.set())
    until = None if seconds is None else time.monotonic() + seconds
    told = 0

    def wait(at_most: float) -> bool:
        return enough.wait(at_most if until is None else max(0, min(at_most, until - time.monotonic()))) or (
            until is not None and time.monotonic() >= until
        )

    def progress(rows: int) -> None:
        nonlocal told
        told += rows
        if sys.stderr.isatty():
            click.echo(f"\r{told:,} events", nl=False, err=True)

    rows = write_trace(only_pool() if pool is None else pool, file, wait, progress)
    click.echo(f"{file}: {rows:,} events")


@cli.command("set-policy")
@click.argument("name", metavar="POLICY|default")
@click.option("--payer", help="The tenant that pays for everybody, for `designated`.")
def set_policy(name: str, payer: str | None) -> None:
    """Bill by another policy, and let limits follow it, from now on and after restarts.

    `default` goes back to the policy of the configuration file.

    Example: sharedctl set-policy first_touch
    """
    from controller.api.client import ask, cgroup_text, read  # noqa: PLC0415
    from controller.api.types import PolicyState  # noqa: PLC0415

    order = {"name": None if name == "default" else name, "payer": None if payer is None else cgroup_text(payer)}
    done = read(PolicyState, ask("PUT", "/v1/policy", {}, order))
    click.echo(f"policy {done.active}" + (f", paid by {done.payer}" if done.payer else ""))


@cli.group("what-if", no_args_is_help=False)
def what_if() -> None:
    """What would be, without doing it.

    Example: sharedctl what-if exit /tenants/a
    """


@what_if.command("exit", epilog=TENANT_HELP)
@tenant_argument
@as_json
def what_if_exit(tenant: str, as_json: bool) -> None:
    """Who would pay what if TENANT exited, whose limit would fall, and what would be nobody's.

    Example: sharedctl what-if exit /tenants/a --json
    """
    _answer("/v1/what-if/exit", as_json, tenant=tenant)


@cli.command()
@as_json
def zombies(as_json: bool) -> None:
    """Removed cgroups that the kernel still has, on any host: how many, what they hold, and which files keep it.

    \b
    Looks at cgroup files, /proc and tmpfs itself; needs no pool and no running controller, and disturbs nothing.
    Example: sharedctl zombies --json
    """
    _need_root("see what pages are charged to")
    from rich.console import Console  # noqa: PLC0415

    from controller.cli import tables  # noqa: PLC0415
    from controller.zombies.report import find_zombies  # noqa: PLC0415
    from sharedfs.linux.cgroups import find_memory_hierarchy  # noqa: PLC0415

    with Console(stderr=True).status("looking") as status:
        found = find_zombies(find_memory_hierarchy(), lambda what: status.update(f"looking at {what}"))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        tables.zombies(found)


def _answer(url: str, as_json: bool, **query: str) -> None:
    from controller.api.client import ask  # noqa: PLC0415

    _show(url, ask("GET", url, query), as_json)


def _show(url: str, answer: Any, as_json: bool) -> None:
    """An answer, as `url` gives it."""
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from controller.cli.tables import VIEWS  # noqa: PLC0415

    VIEWS[url](answer)


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise CallerMistake(f"only root can {what}: use sudo")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry; always raises SystemExit."""
    run_cli(cli, "sharedctl", arguments)


if __name__ == "__main__":
    main()
