"""Pictures of a replay's figures, as SVG. matplotlib draws them (the extra `lab`)."""

import sys
from collections.abc import Sequence
from io import StringIO

from controller.lab.results import Figures, PolicyFigures
from sharedfs.common.errors import CallerMistake

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # it is optional
    raise CallerMistake(
        f"pictures need matplotlib, install it with: {sys.executable} -m pip install matplotlib"
    ) from error

mpl.rcParams["svg.fonttype"] = "none"  # words stay words
mpl.rcParams["svg.hashsalt"] = "sharedfs"  # the same figures, the same file

_GIB = 1 << 30
_WHERE = (
    ("dying_bytes", "on zombies"),
    ("parent_bytes", "on parents"),
    ("root_bytes", "on the root"),
    ("nobody_bytes", "nobody's"),
)


def errors(figures: Figures) -> str:
    """How far each policy's bills are from true use, by both yardsticks."""
    picture = Figure((9, 4.2), layout="constrained")
    axes = picture.subplots()
    names = [policy.policy for policy in figures.policies]
    places = range(len(names))
    axes.barh([place - 0.2 for place in places], [100 * p.error for p in figures.policies], 0.4, label="evenly split")
    axes.barh(
        [place + 0.2 for place in places], [100 * p.access_error for p in figures.policies], 0.4, label="by access"
    )
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel("error, percent of what was truly used (byte-seconds)")
    axes.legend()
    return _svg(picture)


def zombies(figures: Figures) -> str:
    """Removed groups that the kernel would still have, over time."""
    picture = Figure((9, 3.2), layout="constrained")
    axes = picture.subplots()
    for curve, names in _alike(figures.policies):
        axes.step([moment.seconds for moment in curve.moments], [m.dying_groups for m in curve.moments], label=names)
    axes.set_xlabel("seconds")
    axes.set_ylabel("removed groups that stay")
    axes.legend(fontsize="x-small")
    return _svg(picture)


def whereabouts(figures: Figures) -> str:
    """Where the bytes are that no living tenant pays for: a small picture for each policy."""
    picture = Figure((9, 9), layout="constrained")
    columns = 3
    rows = -(-len(figures.policies) // columns)
    grid = picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, policy in enumerate(figures.policies):
        axes: Axes = grid[place // columns][place % columns]
        seconds = [moment.seconds for moment in policy.moments]
        layers = [[getattr(moment, name) / _GIB for moment in policy.moments] for name, _ in _WHERE]
        axes.stackplot(seconds, layers, labels=[label for _, label in _WHERE])
        axes.set_title(policy.policy, fontsize="small")
    for spare in range(len(figures.policies), rows * columns):
        grid[spare // columns][spare % columns].set_axis_off()
    picture.supxlabel("seconds")
    picture.supylabel("GiB")
    picture.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(_WHERE))
    return _svg(picture)


def _alike(policies: Sequence[PolicyFigures]) -> list[tuple[PolicyFigures, str]]:
    """Policies with the same curve are drawn once."""
    curves: dict[tuple[int, ...], list[PolicyFigures]] = {}
    for policy in policies:
        curves.setdefault(tuple(moment.dying_groups for moment in policy.moments), []).append(policy)
    return [(alike[0], ", ".join(policy.policy for policy in alike)) for alike in curves.values()]


def _svg(picture: Figure) -> str:
    text = StringIO()
    picture.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
