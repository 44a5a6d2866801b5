"""`sharedctl lab`: traces made up or recorded, and billed under every policy. Needs no controller and no root."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from controller.lab.outputs import check_replaceable, is_report
from controller.lab.replay import Clocks, Replay
from controller.lab.results import Figures, figures
from controller.lab.scenarios.catalogue import SCENARIOS, scenario_named
from controller.lab.trace_file import StoredTrace, TraceWriter, open_trace
from controller.lab.trace_index import Progress, survey
from controller.policies.registry import POLICIES, policies_named
from sharedfs.linux.cgroups import CgroupRef

SCENARIO_HELP = "Scenarios: " + " ".join(f"{name}: {scenario.about}" for name, scenario in SCENARIOS.items())


@click.group()
def lab() -> None:
    """What each policy would have made of what happened.

    Example: sharedctl lab generate ci-farm ci.parquet && sharedctl lab replay ci.parquet
    """


@lab.command(epilog=SCENARIO_HELP)
@click.argument("scenario")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same trace.")
@click.option("--events", type=click.IntRange(min=1), help="About how many events. Default: what suits the scenario.")
def generate(scenario: str, file: Path, seed: int, events: int | None) -> None:
    """Write the trace of a made-up workload to FILE.

    Example: sharedctl lab generate database db.parquet --seed 7 --events 1000000
    """
    wanted = scenario_named(scenario)
    with (
        TraceWriter(file, wanted.roles) as writer,
        _progress(f"generate {scenario}", wanted.events if events is None else events) as progress,
    ):
        for batch in wanted.generate(seed, events):
            writer.write(batch)
            progress(len(batch))
    click.echo(f"{file}: {writer.rows:,} events")


@lab.command(epilog=f"Policies: all, {', '.join(POLICIES)}.")
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--policy", "policies", multiple=True, default=("all",), help="Can be given more than once. Default: all."
)
@click.option("--payer", help="The tenant that `designated` names, by its path. Default: who allocates first.")
@click.option("--bills", default=256, show_default=True, type=click.IntRange(min=1), help="How often to bill a trace.")
@click.option(
    "--idle", default=600.0, show_default=True, type=click.FloatRange(min=0.001), help="As `sharedfs mount --idle`."
)
@click.option(
    "--window",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="How many seconds after a touch a page counts as truly used. As --idle: then ERROR is what bills are late.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with pictures (HTML)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def replay(
    traces: tuple[Path, ...],
    policies: tuple[str, ...],
    payer: str | None,
    bills: int,
    idle: float,
    window: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Bill each TRACE under every policy and compare the bills with what was truly used.

    Example: sharedctl lab replay ci.parquet --policy first_touch --policy proportional --report ci.html
    """
    policies_named(policies)  # a mistake is told before the work begins
    if report is not None:
        check_replaceable(report, "report", is_report)
    clocks = Clocks(bills, idle, window)
    runs = []
    for path in traces:
        run = replay_trace(open_trace(path), policies, payer, clocks)
        runs.append(run)
        if not as_json:
            from controller.lab import tables  # noqa: PLC0415

            tables.show(run)
    if as_json:
        click.echo(json.dumps({"traces": [asdict(run) for run in runs]}))
    if report is not None:
        from controller.lab.report import page  # noqa: PLC0415 - matplotlib takes a second

        report.write_text(page(runs), encoding="utf-8")
        if not as_json:
            click.echo(f"{report}: open it in a browser")


def replay_trace(trace: StoredTrace, policies: tuple[str, ...], payer: str | None, clocks: Clocks) -> Figures:
    with _progress(f"replay {trace.path.name}", 2 * trace.rows) as progress:
        found = survey(trace, progress)
        named = found.first_allocator
        for number, path in found.paths.items():
            if path == payer:
                named = number
        whom = None if named is None else CgroupRef(found.paths[named], named + 1)
        outcome = Replay(trace, found, policies_named(policies, whom), clocks).run(progress)
    return figures(trace.path.stem, trace.rows, outcome)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Progress]:
    """A bar on the terminal, and nothing where there is none."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda rows: bar.advance(task, rows)
