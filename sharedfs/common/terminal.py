"""Tables for people, plain where the output is no terminal; used by both command lines."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_ENDLESS_LINE = 1 << 10


def say(text: str) -> None:
    _console().print(text, soft_wrap=True)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> None:
    """The first `texts` columns are words, the others numbers. No line is folded where nobody has a window."""
    if not rows:
        say("(none)")
        return
    table = Table(box=None, pad_edge=False)
    for column, head in enumerate(heads):
        table.add_column(head, justify="left" if column < texts else "right", overflow="fold", no_wrap=column >= texts)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    # Markup would take [brackets] in a name for itself.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _ENDLESS_LINE
    return console
