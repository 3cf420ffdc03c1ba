"""What the pages show, taken from the tables once: layers, features, winners, and addresses.

Knows the results; nothing of HTML, nor of how pictures are made. All text here is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from zfscale.gallery import pictures
from zfscale.gallery.names import feature_name, slugs
from zfscale.records import Box, Layer
from zfscale.runs.manifest import State
from zfscale.runs.results import AnalysisResults, Results, boxes


@dataclass(frozen=True, slots=True)
class Winner:
    """One of the strongest images of a feature."""

    rank: int
    score: float
    image: str
    key: str
    label: str | None
    y: int
    x: int
    box: Box | None


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature with its statistics; `top` are names of classes, best first."""

    number: int
    slug: str
    max: float
    mean: float
    std: float
    fraction_active: float
    dead: bool
    selectivity: float | None
    top: tuple[str, ...]
    top_class: int | None
    winners: tuple[Winner, ...]


@dataclass(frozen=True)
class LayerView:
    """A layer with its features in order.

    `field` is the size (height, width) of its patches and projections in pixels, `kept` the
    number of winners of the feature that has most.
    """

    layer: Layer
    slug: str
    projected: bool
    field: tuple[int, int]
    kept: int
    features: tuple[Feature, ...]

    @property
    def name(self) -> str:
        """The name of the layer in the network."""
        return self.layer.name

    @property
    def address(self) -> str:
        """The page of the layer."""
        return f"layers/{self.slug}.html"

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile in its montages."""
        return pictures.tile_shape(self.field)

    @property
    def shown(self) -> int:
        """Places in a montage: nine, or fewer where the run kept fewer."""
        return max(1, min(pictures.SHOWN, self.kept))

    @property
    def columns(self) -> int:
        """Columns, and rows, of a montage."""
        return pictures.side(self.shown)

    @property
    def sheet(self) -> tuple[int, int]:
        """Height and width of a montage in pixels."""
        return self.columns * self.tile[0], self.columns * self.tile[1]

    @property
    def coarse(self) -> bool:
        """Whether single pixels show in its pictures, and should stay squares."""
        return max(self.field) <= pictures.LOSSLESS

    def page(self, feature: Feature) -> str:
        """The page of a feature: a stable address."""
        return f"features/{self.slug}/{feature.slug}.html"

    def picture(self, feature: Feature, what: str) -> str:
        """A picture of a feature: `patches` or `projections` (montages), or `large`."""
        tile = self.field if what == "large" else self.tile
        return f"pictures/{self.slug}/{feature.slug}-{what}.{pictures.suffix(tile)}"


@dataclass(frozen=True)
class Site:
    """Everything the pages show."""

    results: Results
    layers: tuple[LayerView, ...]
    of: AnalysisResults | None = None

    @property
    def analysis(self) -> AnalysisResults:
        """The analysis that a page is about. Only where a module of pages has a `KIND`."""
        if self.of is None:
            raise TypeError("only a module of pages with a KIND is called for an analysis")
        return self.of

    @property
    def slug(self) -> str:
        """How the addresses of the pages of this analysis begin."""
        return self.analysis.name

    @property
    def title(self) -> str:
        """What these pages are called: the kind, and the name where it is another."""
        kind = self.analysis.kind.capitalize()
        return kind if self.analysis.name == self.analysis.kind else f"{kind}: {self.analysis.name}"

    @property
    def unfinished(self) -> list[AnalysisResults]:
        """Analyses whose results are not there or outdated, or whose last job did not end well."""
        return [
            each
            for each in self.results.analyses.values()
            if not each.is_readable or each.state != State.COMPLETE
        ]

    @property
    def input(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.results.preprocessing.crop

    @property
    def coarse(self) -> bool:
        """Whether the network's input is so small that its pixels should stay squares."""
        return max(self.input) <= pictures.LOSSLESS

    def occluder(self) -> str:
        """The colour with which the analysis hid what lies below, as CSS has it."""
        value = self.analysis.options.get("value", "mean")
        colour = self.results.preprocessing.mean_colour if value == "mean" else value
        return "rgb({},{},{})".format(*(int(level) for level in colour))

    def image(self, identity: str) -> str:
        """An image, whole, as the network saw it."""
        return f"images/{identity}.{pictures.suffix(self.input)}"


def survey(results: Results) -> Site:
    """The site of a run, with the layers of its scan if that is complete."""
    if "winners" not in results.tables:
        return Site(results, ())
    slug = slugs(results.layers)
    views = [_layer(results, layer, slug[layer.name]) for layer in results.layers.values()]
    return Site(results, tuple(views))


def class_name(classes: Sequence[str] | None, label: Any) -> str | None:
    """The name of a class, or its number where names are not known; None without a label."""
    if pd.isna(label):
        return None
    index = int(label)
    known = classes is not None and 0 <= index < len(classes)
    return str(classes[index]) if classes is not None and known else f"class {index}"


def _layer(results: Results, layer: Layer, slug: str) -> LayerView:
    frame = results.winners[results.winners["layer"] == layer.name]
    frame = frame.sort_values(["feature", "rank"])
    winners: dict[int, list[Winner]] = {}
    won: Iterable[Any] = frame.itertuples(index=False)
    for row, box in zip(won, boxes(frame), strict=True):
        winners.setdefault(int(row.feature), []).append(_winner(results, row, box))
    table = results.features
    table = table[table["layer"] == layer.name].sort_values("feature")
    rows: Iterable[Any] = table.itertuples(index=False)
    features = tuple(_feature(results, row, winners.get(int(row.feature), [])) for row in rows)
    known = next((w.box for f in features for w in f.winners if w.box is not None), None)
    size = results.preprocessing.crop
    if known is not None:
        size = known[2] - known[0], known[3] - known[1]
    kept = max((len(feature.winners) for feature in features), default=0)
    return LayerView(layer, slug, results.has_projections(layer.name), size, kept, features)


def _winner(results: Results, row: Any, box: Box | None) -> Winner:
    return Winner(
        rank=int(row.rank),
        score=float(row.score),
        image=str(row.image_id),
        key=str(row.key),
        label=class_name(results.classes, row.label),
        y=int(row.y),
        x=int(row.x),
        box=box,
    )


def _feature(results: Results, row: Any, winners: list[Winner]) -> Feature:
    number = int(row.feature)
    classes = results.classes
    top = [class_name(classes, label) for label in row.top_classes]
    return Feature(
        number=number,
        slug=feature_name(number),
        max=float(row.max),
        mean=float(row.mean),
        std=float(row.std),
        fraction_active=float(row.fraction_active),
        dead=bool(row.dead),
        selectivity=None if pd.isna(row.selectivity) else float(row.selectivity),
        top=tuple(name for name in top if name is not None),
        top_class=None if pd.isna(row.top_class) else int(row.top_class),
        winners=tuple(winners),
    )
