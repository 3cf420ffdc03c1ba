"""Invariance (paper, Figure 5): distances and probability by amount of transform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import charts
from zfscale.gallery.charts import Axis
from zfscale.gallery.curves import Curves, first_images, read
from zfscale.gallery.pages import Page, Panel
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


TRANSFORMS = (
    Transform("vertical", "Vertical translation", "pixels down"),
    Transform("horizontal", "Horizontal translation", "pixels to the right"),
    Transform("scale", "Scale", "factor"),
    Transform("rotation", "Rotation", "degrees anticlockwise", 90.0),
)


@dataclass(frozen=True)
class Chart:
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
    """The charts of one transform."""

    transform: Transform
    charts: tuple[Chart, ...]


def count(site: Site) -> int:  # noqa: ARG001
    """One page."""
    return 1


def images(site: Site) -> list[str]:
    """Those that have a curve of their own."""
    return first_images(site.analysis)


def overview_panel(site: Site) -> Panel | None:
    """The charts of the first transform."""
    curves = _curves(site)
    rows = _rows(curves, "normalised")
    if not rows:
        return None
    values = {"row": rows[0], "plot": PLOT}
    return Panel(site.title, "invariance-overview.html", values, address=_address(site))


def image_panels(site: Site) -> Iterator[tuple[str, Panel]]:
    """For each image with a curve of its own the charts of the first transform, with that curve."""
    curves = _curves(site)
    rows = _rows(curves, "normalised")
    for number, image in enumerate(curves.drawn if rows else ()):
        charts = [replace(chart, curves=(chart.curves[number],)) for chart in rows[0].charts]
        values = {"transform": rows[0].transform, "charts": charts, "plot": PLOT}
        yield image.id, Panel(site.title, "invariance-image.html", values, address=_address(site))


def pages(site: Site) -> Iterator[Page]:
    """invariance.html: a row of charts for each transform, then the distances as measured."""
    curves = _curves(site)
    values = {
        "curves": curves,
        "plot": PLOT,
        "classes": [class_name(site.results.classes, image.label) for image in curves.drawn],
        "rows": _rows(curves, "normalised"),
        "measured": _rows(curves, "distance"),
    }
    yield Page(_address(site), "invariance.html", values)


def _address(site: Site) -> str:
    return f"{site.slug}.html"


def _curves(site: Site) -> Curves:
    return read(site.analysis, [layer.name for layer in site.layers])


def _rows(curves: Curves, distance: str) -> list[Row]:
    """A row for each transform: a distance in every layer, and with `normalised` the probability.

    Charts that share a unit share an axis: normalised distances all, distances as measured those
    of one layer, for the layers differ in scale.
    """
    titled = {transform.name for transform in TRANSFORMS}
    others = [Transform(name, name, "amount") for name in curves.amounts if name not in titled]
    transforms = [one for one in (*TRANSFORMS, *others) if one.name in curves.amounts]
    names = [(one.name, layer, distance) for one in transforms for layer in curves.layers]
    tall = {layer: _all(curves, [n for n in names if n[1] == layer]) for layer in curves.layers}
    if distance == "normalised":
        tall = dict.fromkeys(tall, _all(curves, names))
    rows = []
    for transform in transforms:
        drawn = [
            _chart(curves, transform, layer, distance, charts.axis([0.0, *tall[layer]], whole=True))
            for layer in curves.layers
            if (transform.name, layer, distance) in curves.means
        ]
        if distance == "normalised":
            whole = charts.axis((0.0, 1.0), most=6)
            output = _chart(curves, transform, None, "probability", whole)
            drawn += [] if not output.mean else [output]
        rows.append(Row(transform, tuple(chart for chart in drawn if chart.mean)))
    return [row for row in rows if row.charts]


def _chart(curves: Curves, transform: Transform, layer: str | None, measure: str, y: Axis) -> Chart:
    # The probability stands with every layer; it is that of the output.
    name = (transform.name, layer or curves.layers[0], measure)
    amounts = curves.amounts[transform.name]
    x = charts.axis(amounts, most=7, step=transform.step)

    def path(values: NDArray[np.float64]) -> str:
        return charts.path(amounts, values.tolist(), x, y)

    single = tuple(path(values) for values in curves.single[name])
    return Chart(layer, measure, transform.unit, x, y, path(curves.means[name]), single)


def _all(curves: Curves, names: list[tuple[str, str, str]]) -> list[float]:
    """Every value of some curves, the mean's too."""
    stored = [name for name in names if name in curves.means]
    parts = [curves.single[name].ravel() for name in stored] + [curves.means[n] for n in stored]
    values: list[float] = np.concatenate(parts).tolist() if parts else []
    return values
