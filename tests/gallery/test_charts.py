"""Axes, ticks and paths of charts."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfscale.gallery.charts import HEIGHT, WIDTH, axis, path

NUMBERS = st.integers(-(10**6), 10**6).map(lambda number: number / 1000)


@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(3, 9), st.booleans())
def test_ticks_are_few_round_even_and_within(values: list[float], most: int, whole: bool) -> None:
    made = axis(values, most, whole)
    assert made.low <= min(values)
    assert made.high >= max(values)
    assert made.high > made.low
    if not whole and min(values) < max(values):
        assert (made.low, made.high) == (min(values), max(values))
    room = 1e-6 * (made.high - made.low)
    assert all(made.low - room <= tick <= made.high + room for tick in made.ticks)
    assert len(made.ticks) <= most + 2 * whole
    steps = [b - a for a, b in zip(made.ticks, made.ticks[1:], strict=False)]
    for step in steps:
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - round_) for round_ in (1, 2, 5)) < 1e-4
        assert step == pytest.approx(steps[0], rel=1e-4)


@pytest.mark.parametrize(
    ("values", "options", "ticks", "ends"),
    [
        ((0, 1), {"most": 6}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"], (0, 1)),
        ((-60, 60), {"most": 7}, ["−60", "−40", "−20", "0", "20", "40", "60"], (-60, 60)),  # noqa: RUF001
        ((0, 345), {"step": 90}, ["0", "90", "180", "270"], (0, 345)),
        ((1, 1.8), {}, ["1.0", "1.2", "1.4", "1.6", "1.8"], (1, 1.8)),
        ((0, 0.137), {"whole": True}, ["0.00", "0.05", "0.10", "0.15"], (0, 0.15)),
        ((0, 0.1 + 0.2), {"whole": True}, ["0.0", "0.1", "0.2", "0.3"], (0, 0.3)),
        ((7, 7), {}, ["8", "10", "12", "14"], (7, 14)),
        ((), {}, ["0.0", "0.5", "1.0"], (0, 1)),
        ((math.nan, math.inf, 2, 4), {"most": 3}, ["2", "3", "4"], (2, 4)),
    ],
)
def test_axes(values, options, ticks, ends) -> None:
    made = axis(values, **options)
    assert [made.text(tick) for tick in made.ticks] == ticks
    assert (made.low, made.high) == pytest.approx(ends)


def test_a_path_goes_through_its_points_and_breaks_at_gaps() -> None:
    x, y = axis((0, 4)), axis((10, 20))
    drawn = path((0, 1, 2, 3, 4), (10, 20, math.nan, 15, 12.5), x, y)
    numbers = [float(number) for number in re.findall(r"[\d.]+", drawn)]
    points = [(0, HEIGHT), (WIDTH / 4, 0), (0.75 * WIDTH, HEIGHT / 2), (WIDTH, 0.75 * HEIGHT)]
    assert numbers == pytest.approx([c for point in points for c in point], abs=0.05)
    assert re.sub(r"[^MLCHVZ]", "", drawn) == "MLML"
    assert path((0, 1), (math.nan, math.nan), x, y) == ""
