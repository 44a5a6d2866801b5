"""A replay's figures for people: two tables in the terminal, who pays and what it takes."""

from controller.lab.events import PAGE_BYTES
from controller.lab.results import Figures, PolicyFigures
from sharedfs.common.terminal import print_table, say
from sharedfs.common.units import format_size

PAYS = (
    "POLICY",
    "ERROR",
    "BY ACCESS",
    "JAIN",
    "RIDDEN FREE",
    "BILLED",
    "ZOMBIES",
    "ON ZOMBIES",
    "ON PARENTS",
    "ON ROOT",
    "NOBODY'S",
    "PUSHED OVER",
)
TAKES = (
    "POLICY",
    "MOVED AT EXIT",
    "ON ACCESS",
    "LOOKED AT, MOST",
    "MEAN",
    "SORTS",
    "REFAULTED",
    "SWAPPED IN",
    "STUCK",
    "DELAYED",
)


def show(figures: Figures) -> None:
    say(headline(figures))
    print_table(PAYS, [pays(policy) for policy in figures.policies], texts=1)
    say("")
    roles = sorted({role for policy in figures.policies for role in policy.gains})
    heads = (*TAKES, *(f"GAIN OF {role.upper()}" for role in roles))
    print_table(heads, [takes(policy, roles) for policy in figures.policies], texts=1)
    say("")


def headline(figures: Figures) -> str:
    return (
        f"{figures.trace}: {figures.events:,} events in {figures.seconds:,.0f} s, {figures.tenants:,} tenants"
        f" ({figures.most_alive} at a time), {figures.files:,} files, {figures.groups:,} page groups,"
        f" at most {format_size(figures.most_resident_bytes)} resident"
    )


def pays(policy: PolicyFigures) -> tuple[str, ...]:
    return (
        policy.policy,
        f"{policy.error:.1%}",
        f"{policy.access_error:.1%}",
        f"{policy.jain:.2f}",
        f"{policy.ridden_free:.1%}",
        f"{policy.billed_of_resident:.0%}",
        f"{policy.most_dying_groups:,}",
        format_size(policy.most_dying_bytes),
        format_size(policy.most_parent_bytes),
        format_size(policy.most_root_bytes),
        format_size(policy.most_nobody_bytes),
        f"{policy.pushed_over_limit:,}",
    )


def takes(policy: PolicyFigures, roles: list[str]) -> tuple[str, ...]:
    return (
        policy.policy,
        _pages(policy.moved_at_exit),
        _pages(policy.moved_on_access),
        _pages(policy.most_pages_of_an_exit),
        _pages(policy.mean_pages_of_an_exit),
        f"{policy.mean_sorts_of_an_exit:,.1f}",
        _pages(policy.refaulted),
        _pages(policy.swapped_in),
        _pages(policy.stuck),
        f"{policy.delayed_accesses:,.0f}",
        *(f"{policy.gains[role]:+.0%}" for role in roles),
    )


def _pages(pages: float) -> str:
    """Pages as bytes, which are easier to compare with what is resident."""
    return format_size(round(pages * PAGE_BYTES))
