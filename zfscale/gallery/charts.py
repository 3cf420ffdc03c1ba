"""The mathematics of line charts: axes, ticks, paths. Knows no run and no HTML.

A chart is drawn on a plot of WIDTH x HEIGHT units whose origin is its top left corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 260, 160


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: its ends, its ticks, and how many decimals tell the ticks apart."""

    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int

    def place(self, value: float) -> float:
        """Where a value lies, as a fraction of the axis from its low end; 0.5 if it has none."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def text(self, value: float) -> str:
        """A tick as it is written."""
        return f"{value:.{self.decimals}f}".replace("-", "−")  # noqa: RUF001


def axis(
    values: Iterable[float], most: int = 5, whole: bool = False, step: float | None = None
) -> Axis:
    """An axis that holds all finite values, with at most `most` ticks at round numbers.

    Its ends are the extreme values, or with `whole` the next ticks outside of them. `step` is
    the distance of the ticks; without it, it is 1, 2 or 5 times a power of ten. An axis with no
    two different values gets a length of its own.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if not low < high:
        high = low + max(1.0, abs(low))
    step = step or _step(low, high, most)
    if whole:
        # Without the last bits of the division, which would add a step.
        low = math.floor(low / step + 1e-9) * step
        high = math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(low, high, tuple(step * number for number in range(first, last + 1)), decimals)


def path(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> str:
    """The curve through some points as an SVG path; it breaks where a value is not finite."""
    parts, joined = [], False
    for value_x, value_y in zip(xs, ys, strict=True):
        if not math.isfinite(value_x) or not math.isfinite(value_y):
            joined = False
            continue
        at = f"{_short(WIDTH * x.place(value_x))} {_short(HEIGHT * (1 - y.place(value_y)))}"
        parts.append(f"{'L' if joined else 'M'}{at}")
        joined = True
    return "".join(parts)


def _step(low: float, high: float, most: int) -> float:
    """The smallest round step that needs at most `most` ticks between two ends."""
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough) + 1e-9)
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def _short(value: float) -> str:
    """A coordinate to a tenth of a unit, finer than a line is thick."""
    return f"{value:.1f}".removesuffix(".0")
