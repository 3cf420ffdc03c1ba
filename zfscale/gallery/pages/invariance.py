"""Invariance (paper, Figure 5): distances and probability by amount of transform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import charts
from zfscale.gallery.charts import Axis
from zfscale.gallery.curves import Curves, read
from zfscale.gallery.pages import Chapter, Page
from zfscale.gallery.site import Site, class_name

KIND = "invariance"
PLOT = (charts.WIDTH, charts.HEIGHT)


@dataclass(frozen=True, slots=True)
class Transform:
    """A transform: its name in the table, in words, what its amounts count, and their ticks."""

    name: str
    title: str
    unit: str
    step: float | None = None


KNOWN = (
    Transform("vertical", "Vertical translation", "pixels down"),
    Transform("horizontal", "Horizontal translation", "pixels to the right"),
    Transform("scale", "Scale", "factor"),
    Transform("rotation", "Rotation", "degrees anticlockwise", 90.0),
)


@dataclass(frozen=True)
class Panel:
    """A line chart: `layer` is None for a measure of the output; paths are SVG."""

    layer: str | None
    measure: str
    unit: str
    x: Axis
    y: Axis
    mean: str
    curves: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The panels of one transform."""

    transform: Transform
    panels: tuple[Panel, ...]


def count(site: Site) -> int:  # noqa: ARG001
    """One page."""
    return 1


def chapter(site: Site) -> Chapter | None:
    """The charts of the first transform."""
    curves = read(site.analysis, site.results.layers)
    rows = _rows(curves, "normalised")
    if not rows:
        return None
    images = frozenset(image.id for image in curves.drawn)
    values = {"row": rows[0], "curves": curves, "plot": PLOT, "title": site.title}
    return Chapter(
        site.analysis.name, f"{site.slug}.html", 5, "invariance-strip.html", values, images
    )


def pages(site: Site) -> Iterator[Page]:
    """invariance.html: a row of charts for each transform, then the distances as measured."""
    curves = read(site.analysis, site.results.layers)
    values = {
        "curves": curves,
        "plot": PLOT,
        "classes": [class_name(site.results.classes, image.label) for image in curves.drawn],
        "rows": _rows(curves, "normalised"),
        "measured": _rows(curves, "distance"),
    }
    yield Page(f"{site.slug}.html", "invariance.html", values)


def _rows(curves: Curves, distance: str) -> list[Row]:
    """A row for each transform: a distance in every layer, and with `normalised` the probability.

    Charts that share a unit share an axis: normalised distances all, distances as measured those
    of one layer, for the layers differ in scale.
    """
    known = {transform.name: transform for transform in KNOWN}
    others = [Transform(name, name, "amount") for name in curves.amounts if name not in known]
    found = [one for one in (*KNOWN, *others) if one.name in curves.amounts]
    names = [(one.name, layer, distance) for one in found for layer in curves.layers]
    tall = {layer: _all(curves, [n for n in names if n[1] == layer]) for layer in curves.layers}
    if distance == "normalised":
        tall = dict.fromkeys(tall, _all(curves, names))
    rows = []
    for transform in found:
        panels = [
            _panel(curves, transform, layer, distance, charts.axis([0.0, *tall[layer]], whole=True))
            for layer in curves.layers
            if (transform.name, layer, distance) in curves.means
        ]
        if distance == "normalised":
            whole = charts.axis((0.0, 1.0), most=6)
            output = _panel(curves, transform, None, "probability", whole)
            panels += [] if not output.mean else [output]
        rows.append(Row(transform, tuple(panel for panel in panels if panel.mean)))
    return [row for row in rows if row.panels]


def _panel(curves: Curves, transform: Transform, layer: str | None, measure: str, y: Axis) -> Panel:
    # The probability stands with every layer; it is that of the output.
    name = (transform.name, layer or curves.layers[0], measure)
    amounts = curves.amounts[transform.name]
    x = charts.axis(amounts, most=7, step=transform.step)

    def path(values: NDArray[np.float64]) -> str:
        return charts.path(amounts, values.tolist(), x, y)

    single = tuple(path(values) for values in curves.single[name])
    return Panel(layer, measure, transform.unit, x, y, path(curves.means[name]), single)


def _all(curves: Curves, names: list[tuple[str, str, str]]) -> list[float]:
    """Every value of some curves, the mean's too."""
    given = [name for name in names if name in curves.means]
    parts = [curves.single[name].ravel() for name in given] + [curves.means[n] for n in given]
    values: list[float] = np.concatenate(parts).tolist() if parts else []
    return values
