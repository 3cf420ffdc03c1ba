"""Line charts side by side as one SVG, written by hand: no library draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from zfscale.gallery import charts
from zfscale.gallery.charts import HEIGHT, WIDTH

LEFT, TOP, RIGHT, BOTTOM = 44, 26, 12, 42
"""Room around a plot, in units, for its title, ticks and the name of its axis."""


@dataclass(frozen=True)
class Line:
    """A curve: its name in the legend, its colour, and its points."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Curves over one axis, with the values at which both axes have ticks."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x: charts.Axis
    y: charts.Axis


def svg(rows: Sequence[Sequence[Chart]], title: str) -> str:
    """The charts in rows, under a legend of all curves, on white."""
    width = max(len(row) for row in rows) * (LEFT + WIDTH + RIGHT)
    height = TOP + len(rows) * (TOP + HEIGHT + BOTTOM)
    look = 'role="img" font-family="sans-serif" font-size="11" fill="#222"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {look}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(rows),
    ]
    for down, row in enumerate(rows):
        for across, chart in enumerate(row):
            x = LEFT + across * (LEFT + WIDTH + RIGHT)
            y = 2 * TOP + down * (TOP + HEIGHT + BOTTOM)
            parts += [f'<g transform="translate({x} {y})">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _legend(rows: Sequence[Sequence[Chart]]) -> list[str]:
    lines = {line.name: line for row in rows for chart in row for line in chart.lines}
    parts, x = [], LEFT
    for line in lines.values():
        parts += [_stroke(x, 16, x + 22, 16, line.colour, 2), _text(x + 28, 20, line.name, "start")]
        x += 44 + 6 * len(line.name)
    return parts


def _chart(chart: Chart) -> list[str]:
    parts = [_text(WIDTH / 2, -10, chart.title, "middle")]
    for tick in chart.x.ticks:
        at = WIDTH * chart.x.place(tick)
        parts += [_stroke(at, HEIGHT, at, HEIGHT + 4, "#888", 1)]
        parts += [_text(at, HEIGHT + 16, chart.x.text(tick), "middle")]
    for tick in chart.y.ticks:
        at = HEIGHT * (1 - chart.y.place(tick))
        parts += [_stroke(0, at, WIDTH, at, "#ddd", 1)]
        parts += [_text(-7, at + 4, chart.y.text(tick), "end")]
    parts += [_text(WIDTH / 2, HEIGHT + 31, chart.unit, "middle")]
    for line in chart.lines:
        path = charts.path(line.x, line.y, chart.x, chart.y)
        parts += [f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="2"/>']
    return parts


def _stroke(x: float, y: float, to_x: float, to_y: float, colour: str, width: int) -> str:
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
