"""What a reader gains that uses a page now and then, and lets others keep it: the part of the time that it pays.

A touch counts until the second ageing after it. With idle time I there is one each I/2, so a touch counts for I/2 to I,
on average three quarters of I. Of a period T between two touches a reader pays, when these fall anywhere:

    T <= I/2         all of it
    I/2 < T < I      2 - T/I - I/(4 T)
    T >= I           3/4 of I/T

and one that knows when ageing comes, and touches just before it, at least I/2 of T. docs/pages.md has the figures.
"""

from fractions import Fraction

import pytest

from sharedfs.ledger.sharing_class import SharingClass
from sharedfs.ledger.tenant import NOBODY, TenantId

MAKER, RIDER = TenantId(1), TenantId(2)
STEPS = 40
"""Of time in the idle time: an ageing comes each half of them."""


def rides(period: int, phase: int, *, maker_lives: bool) -> tuple[Fraction, Fraction]:
    """The part of the time that the rider pays, and the part of the page that it pays for, on average."""
    page = SharingClass.charged_by(MAKER if maker_lives else NOBODY)
    paid, parts, steps = 0, Fraction(0), 20 * period * STEPS
    for now in range(-2 * STEPS, steps):
        if now % (STEPS // 2) == 0:
            page = page.aged()
        if (now - phase) % period == 0:
            page = page.touched_by(RIDER)
        if now >= 0 and RIDER in page.payers:
            paid += 1
            parts += Fraction(1, len(page.payers))
    return Fraction(paid, steps), parts / steps


def expected(period: int) -> Fraction:
    ratio = Fraction(period, STEPS)
    if ratio <= Fraction(1, 2):
        return Fraction(1)
    return 2 - ratio - 1 / (4 * ratio) if ratio < 1 else Fraction(3, 4) / ratio


@pytest.mark.parametrize("period", [10, 20, 30, 40, 60, 80, 200])
def test_the_part_of_the_time_that_it_pays(period: int) -> None:
    phases = range(STEPS // 2)
    time = sum(rides(period, phase, maker_lives=False)[0] for phase in phases) / len(phases)
    assert float(time) == pytest.approx(float(expected(period)), abs=0.05)


@pytest.mark.parametrize("period", [40, 80, 200])
def test_who_knows_when_ageing_comes_pays_for_half_the_idle_time_all_the_same(period: int) -> None:
    least = min(rides(period, phase, maker_lives=False)[0] for phase in range(STEPS // 2))
    assert least >= Fraction(STEPS // 2, period)
    assert float(least) == pytest.approx(STEPS / 2 / period, abs=0.05)


@pytest.mark.parametrize("period", [10, 80])
def test_while_the_maker_lives_it_pays_half_of_the_page_in_that_time_and_then_all(period: int) -> None:
    time, part = rides(period, 7, maker_lives=True)
    assert part == time / 2
    alone, whole = rides(period, 7, maker_lives=False)
    assert (alone, whole) == (time, time)
