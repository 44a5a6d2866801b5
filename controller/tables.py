"""The API's answers for people: tables of sizes, plain where the output is no terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from controller.client import Answer
from sharedfs.units import format_size


def bills(answer: Answer) -> None:
    rows = [
        (
            line["tenant"],
            line["state"],
            *(_size(line[f"{key}_bytes"]) for key in ("share", "used", "budget", "limit", "kernel_usage", "debt")),
        )
        for line in answer["tenants"]
    ]
    _table(("TENANT", "STATE", "SHARE", "USED", "BUDGET", "LIMIT", "KERNEL USAGE", "DEBT"), rows, texts=2)
    _say(
        f"resident {_size(answer['pool_resident_bytes'])}, of this unclaimed {_size(answer['unclaimed_bytes'])},"
        f" foreign {_size(answer['foreign_bytes'])}"
    )


def explain(answer: Answer) -> None:
    _say(f"{answer['tenant']}: share {_size(answer['share_bytes'])} of {_size(answer['used_bytes'])} used")
    files = [(f["pool"], f["path"], _size(f["used_bytes"]), _size(f["share_bytes"])) for f in answer["files"]]
    _table(("POOL", "FILE", "USED", "SHARE"), files, texts=2)
    classes = [
        (
            held["pool"],
            "\n".join(user + (" (mapped)" if user in held["mapped"] else "") for user in held["users"]),
            (held["owner"] or "-") + (" (foreign)" if held["foreign"] else ""),
            _size(held["bytes"]),
            _size(held["share_bytes"]),
        )
        for held in answer["classes"]
    ]
    _table(("POOL", "SHARED BY", "OWNER", "BYTES", "SHARE"), classes, texts=3)


def users(answer: Answer) -> None:
    _say(
        f"{answer['path']} on pool {answer['pool']}: resident {_size(answer['resident_bytes'])},"
        f" of this unclaimed {_size(answer['unclaimed_bytes'])}"
    )
    rows = [(line["tenant"], _size(line["used_bytes"]), _size(line["share_bytes"])) for line in answer["tenants"]]
    _table(("TENANT", "USED", "SHARE"), rows, texts=1)


def what_if_exit(answer: Answer) -> None:
    _say(f"if {answer['tenant']} exited now, {_size(answer['freed_bytes'])} would be nobody's")
    rows = [
        (
            line["tenant"],
            _size(line["share_before_bytes"]),
            _size(line["share_after_bytes"]),
            _size(line["limit_before_bytes"]),
            _size(line["limit_after_bytes"]),
        )
        for line in answer["tenants"]
    ]
    _table(("TENANT", "SHARE NOW", "SHARE THEN", "LIMIT NOW", "LIMIT THEN"), rows, texts=1)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], texts: int) -> None:
    """The first `texts` columns are words, the others numbers. No line is folded where nobody has a window."""
    if not rows:
        _say("(none)")
        return
    table = Table(box=None, pad_edge=False)
    for column, head in enumerate(heads):
        table.add_column(head, justify="left" if column < texts else "right", overflow="fold", no_wrap=column >= texts)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 1 << 10
    # markup would take [brackets] in a name for itself
    console.print(table, markup=False, highlight=False)
