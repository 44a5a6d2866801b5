"""What a benchmark leaves behind: NAME.json with every figure, and NAME.svg with medians, ratios and goals.

    bench-results/mount.json    all rounds, medians, ratios with their goals
    bench-results/mount.svg     the same, to look at

The drawing needs matplotlib (`pip install '.[bench]'`) and is left out without it.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    CAN_DRAW = True
except ImportError:
    CAN_DRAW = False

DEFAULT_DIRECTORY = "bench-results"
out_option = click.option(
    "--out",
    default=DEFAULT_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for NAME.json and NAME.svg.",
)

Rounds = Mapping[str, Mapping[str, Sequence[float]]]
"""Case -> contender -> the figure of each round."""
Medians = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Goal:
    """In `case`, the median of `side` is to be at least `at_least` of that of `other`; None: it is only looked at."""

    case: str
    side: str
    other: str
    at_least: float | None = None


@dataclass(frozen=True)
class Ratio(Goal):
    """How it came out."""

    ratio: float = 0.0

    @property
    def reached(self) -> bool | None:
        return None if self.at_least is None else round(self.ratio, 2) >= self.at_least


def medians_of(rounds: Rounds) -> dict[str, dict[str, float]]:
    return {case: {side: statistics.median(values) for side, values in sides.items()} for case, sides in rounds.items()}


def ratios_of(medians: Medians, goals: Sequence[Goal]) -> list[Ratio]:
    """What can be told of `goals`: a contender may have been left out."""
    return [
        Ratio(goal.case, goal.side, goal.other, goal.at_least, sides[goal.side] / sides[goal.other])
        for goal in goals
        if goal.side in (sides := medians.get(goal.case, {})) and goal.other in sides
    ]


def save(
    directory: Path,
    name: str,
    settings: Mapping[str, object],
    rounds: Rounds,
    unit: str,
    goals: Sequence[Goal] = (),
    *,
    scale: str = "linear",
) -> dict[str, Any]:
    """Write both files, say where, and return what is in the first.

    `unit` is what figures count, and `scale` ("log" for what differs much) how they are drawn.
    """
    medians = medians_of(rounds)
    ratios = ratios_of(medians, goals)
    told = [asdict(ratio) | {"reached": ratio.reached} for ratio in ratios]
    data = {"benchmark": name, **settings, "figures": rounds, "medians": medians, "ratios": told}
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / f"{name}.json"]
    written[0].write_text(json.dumps(data, indent=2) + "\n")
    if not CAN_DRAW:
        click.echo("no drawing: matplotlib is missing (pip install '.[bench]')", err=True)
    else:
        written.append(directory / f"{name}.svg")
        draw(written[1], name, medians, ratios, unit, scale)
    click.echo(f"written: {', '.join(map(str, written))}", err=True)
    return data


def show(ratios: Sequence[Mapping[str, Any]]) -> None:
    table = Table("case", "ratio of", "to", "is", "goal", box=None)
    for ratio in ratios:
        goal = "" if ratio["at_least"] is None else f"{ratio['at_least']:.2f}"
        table.add_row(ratio["case"], ratio["side"], ratio["other"], f"{ratio['ratio']:.2f}", goal)
    Console(width=160).print(table)


def draw(path: Path, name: str, medians: Medians, ratios: Sequence[Ratio], unit: str, scale: str) -> None:
    """A panel of bars for each case, and one of the ratios with a tick at each goal."""
    heights = [max(2, len(sides)) for sides in medians.values()] + [len(ratios)] * bool(ratios)
    figure = Figure(figsize=(10, 1.2 + 0.32 * sum(heights) + 0.45 * len(heights)), layout="constrained")
    figure.suptitle(f"bench/{name}.py: medians, {unit}")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (case, sides) in zip(panels, medians.items(), strict=False):
        panel.set_xscale(scale)
        bars = panel.barh(list(sides), list(sides.values()), color="#7a9cc6")
        panel.bar_label(bars, [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in sides.values()])
        _dress(panel, case)
    if ratios:
        _draw_ratios(panels[-1], ratios)
    figure.savefig(path)


def _draw_ratios(panel: "Axes", ratios: Sequence[Ratio]) -> None:
    labels = [f"{ratio.case}: {ratio.side} / {ratio.other}" for ratio in ratios]
    colours = {True: "#6aa96a", False: "#c9665c", None: "#b5b5b5"}
    values = [ratio.ratio for ratio in ratios]
    bars = panel.barh(labels, values, color=[colours[ratio.reached] for ratio in ratios])
    panel.bar_label(bars, [f"{value:.2f}" for value in values])
    for place, ratio in enumerate(ratios):
        if ratio.at_least is not None:
            panel.plot([ratio.at_least] * 2, [place - 0.45, place + 0.45], color="black")
    _dress(panel, "ratios; a black line is the goal")


def _dress(panel: "Axes", title: str) -> None:
    panel.set_title(title, loc="left", fontsize="medium")
    panel.margins(x=0.15)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
