"""The report: one page that opens in any browser, with everything in it and nothing fetched from elsewhere."""

from collections.abc import Sequence
from html import escape

from controller.lab import charts, tables
from controller.lab.outputs import REPORT_HEAD
from controller.lab.results import Figures

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; font-size: 11px; }
svg { max-width: 100%; height: auto; }
"""
_LEGEND = (
    "ERROR: what tenants paid too much or too little while they lived, of what all truly used, evenly split among"
    " those who used a page. BY ACCESS: the same, split by accesses. JAIN: fairness of paid over used, 1 is even."
    " RIDDEN FREE: used and not paid. BILLED: of what is resident. PUSHED OVER: tenants that another one's exit"
    " put over their limit. Bytes in the second table are pages that charges, refaults and so on happened to;"
    " SORTS: sorts of pages looked at for an exit."
)


def page(runs: Sequence[Figures]) -> str:
    parts = [_section(figures) for figures in runs]
    names = ", ".join(escape(figures.trace) for figures in runs)
    return (
        f"{REPORT_HEAD}{names}</title>"
        f"<style>{_STYLE}</style>\n<h1>Who pays for shared memory</h1>\n<p>{escape(_LEGEND)}</p>\n"
        + "\n".join(parts)
        + "</html>\n"
    )


def _section(figures: Figures) -> str:
    roles = sorted({role for policy in figures.policies for role in policy.gains})
    takes = (*tables.TAKES, *(f"GAIN OF {role.upper()}" for role in roles))
    return "\n".join(
        (
            f"<h2>{escape(figures.trace)}</h2><p>{escape(tables.headline(figures))}</p>",
            _table(tables.PAYS, [tables.pays(policy) for policy in figures.policies]),
            _table(takes, [tables.takes(policy, roles) for policy in figures.policies]),
            charts.errors(figures),
            charts.zombies(figures),
            charts.whereabouts(figures),
        )
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
