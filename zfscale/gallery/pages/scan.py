"""What a scan found: a page for each layer with every feature a cell, projections beside patches
(paper, Figure 2), and a page for each feature with its winners one by one and its statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import pictures
from zfscale.gallery.pages import Page, with_neighbours
from zfscale.gallery.site import Feature, LayerView, Site, Winner

KIND = "scan"
BINS = 32


@dataclass(frozen=True)
class Histogram:
    """How a statistic is spread over the features of a layer: bar heights in 0..1.

    Drawn on 96 x 32 SVG units, 3 for a bar.
    """

    title: str
    low: float
    high: float
    heights: tuple[float, ...]

    @cached_property
    def path(self) -> str:
        """All bars as one SVG path; a thousand pages of a layer share it."""
        bars = [index for index, height in enumerate(self.heights) if height > 0]
        return "".join(self.bar(index) for index in bars)

    def bar(self, index: int) -> str:
        """One bar as an SVG path, visible also where no feature is."""
        height = 30 * self.heights[index] + 1.5
        return f"M{3 * index + 0.25} 32v-{height:.2f}h2.5v{height:.2f}z"

    def bin(self, value: float | None) -> int | None:
        """The bar that a value falls into."""
        if value is None or not np.isfinite(value):
            return None
        width = (self.high - self.low) / BINS
        return min(BINS - 1, int((value - self.low) / width))


@dataclass(frozen=True)
class WinnerBoxes:
    """Where a winner's evidence lies: boxes as (x, y, width, height) for SVG.

    `field` is the receptive field in the image, `frame` holds the image and the field,
    `projection` is the winner's place in the picture of all projections.
    """

    winner: Winner
    field: tuple[int, int, int, int]
    frame: tuple[int, int, int, int]
    projection: tuple[int, int, int, int]


def count(site: Site) -> int:
    """One page a layer, and one a feature."""
    return sum(1 + len(layer.features) for layer in site.layers)


def pages(site: Site) -> Iterator[Page]:
    """layers/NAME.html for every layer, chained in the order of the network, and
    features/LAYER/NUMBER.html for every feature, chained within the layer.
    """
    for before, layer, after in with_neighbours(site.layers):
        links = {"previous": before, "next": after}
        yield Page(layer.address, "layer.html", {"layer": layer, **links})
        histograms = _histograms(layer)
        for previous, feature, following in with_neighbours(layer.features):
            values = {
                "layer": layer,
                "feature": feature,
                "previous": previous,
                "next": following,
                "previous_layer": before,
                "next_layer": after,
                "winners": [_boxes(site, layer, winner) for winner in feature.winners],
                "padding": "rgb({},{},{})".format(*site.results.preprocessing.mean_colour),
                "columns": pictures.side(layer.kept),
                "histograms": [(h, getattr(feature, name)) for name, h in histograms.items()],
            }
            yield Page(layer.page(feature), "feature.html", values)


def _boxes(site: Site, layer: LayerView, winner: Winner) -> WinnerBoxes:
    height, width = site.input
    y0, x0, y1, x1 = winner.box or (0, 0, height, width)
    left, top = min(x0, 0), min(y0, 0)
    right, bottom = max(x1, width), max(y1, height)
    row, column = divmod(winner.rank, pictures.side(layer.kept))
    return WinnerBoxes(
        winner,
        field=(x0, y0, x1 - x0, y1 - y0),
        frame=(left, top, right - left, bottom - top),
        projection=(
            column * layer.field[1],
            row * layer.field[0],
            layer.field[1],
            layer.field[0],
        ),
    )


def _histograms(layer: LayerView) -> dict[str, Histogram]:
    titles = {
        "max": "largest activation",
        "fraction_active": "fraction of images active",
        "selectivity": "class selectivity",
    }
    histograms = {}
    for name, title in titles.items():
        values = _finite(layer.features, name)
        if len(values) and values.min() < values.max():
            counts, edges = np.histogram(values, bins=BINS)
            heights = tuple((counts / counts.max()).tolist())
            histograms[name] = Histogram(title, float(edges[0]), float(edges[-1]), heights)
    return histograms


def _finite(features: tuple[Feature, ...], name: str) -> NDArray[np.float64]:
    column = [getattr(feature, name) for feature in features]
    values = np.array([value for value in column if value is not None], np.float64)
    return values[np.isfinite(values)]
