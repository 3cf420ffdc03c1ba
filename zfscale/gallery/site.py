"""What the pages show, taken from the tables once: scans, features, winners, images, addresses.

Knows the results; nothing of HTML, nor of how pictures are made. All text here is untrusted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from zfscale.errors import UsageError
from zfscale.gallery import pictures
from zfscale.gallery.names import feature_name, slugs
from zfscale.records import Box, ImageRef, Layer
from zfscale.runs.analysis_results import AnalysisResults
from zfscale.runs.manifest import State
from zfscale.runs.results import Results, boxes

OVERVIEW = "index.html"

RESERVED = ("assets", "features", "images", "index", "layers", "pictures")
"""How the addresses of the gallery itself begin."""


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
    """A layer of a scan with its features in order.

    `scan` names the scan, and the addresses begin with `folder`. `field` is the size (height,
    width) of its patches and projections in pixels, `kept` the number of winners of the feature
    that has most.
    """

    layer: Layer
    scan: str
    folder: str
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
        return f"{self.folder}layers/{self.slug}.html"

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

    def feature(self, number: int) -> Feature | None:
        """A feature by its number; None if there is none."""
        return self._by_number.get(number)

    @cached_property
    def _by_number(self) -> Mapping[int, Feature]:
        return {feature.number: feature for feature in self.features}

    def page(self, feature: Feature) -> str:
        """The page of a feature: a stable address."""
        return f"{self.folder}features/{self.slug}/{feature.slug}.html"

    def picture(self, feature: Feature, what: str) -> str:
        """A picture of a feature: `patches` or `projections` (montages), or `large`."""
        tile = self.field if what == "large" else self.tile
        name = f"{feature.slug}-{what}.{pictures.suffix(tile)}"
        return f"{self.folder}pictures/{self.slug}/{name}"


@dataclass(frozen=True)
class ScanView:
    """A scan that can be read: its layers, and the analysis that deconvolved its winners, if any.

    The addresses of its pages begin with `folder`: nothing for the scan called `scan`.
    """

    analysis: AnalysisResults
    deconvolution: AnalysisResults | None
    folder: str
    layers: tuple[LayerView, ...]

    @property
    def name(self) -> str:
        """Its name in the run."""
        return self.analysis.name

    @property
    def anchor(self) -> str:
        """Where it begins on the first page."""
        return f"scan-{self.name}"

    def projections(self, layer: LayerView) -> Any:
        """All projections of a layer, unread; None where it was not deconvolved."""
        if self.deconvolution is None or not layer.projected:
            return None
        return self.deconvolution.array(f"projections.zarr/{layer.name}")


@dataclass(frozen=True, slots=True)
class Win:
    """A feature that an image is one of the winners of."""

    layer: LayerView
    feature: Feature
    winner: Winner


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image that the gallery shows whole: what it is, and what the network took it for.

    `label` and `predicted` are names of classes; `wins` are the features that are active in it, in
    the order of scans and layers.
    """

    id: str
    key: str
    label: str | None
    predicted: str | None
    probability: float | None
    ref: ImageRef
    wins: tuple[Win, ...]


@dataclass(frozen=True)
class Site:
    """Everything the pages show.

    `scans` are those that can be read, the one called `scan` first. `images` maps the ids of the
    images that are shown whole, in the order of the files. `slugs` maps the name of each analysis
    to the beginning of the addresses of its pages.
    """

    results: Results
    scans: tuple[ScanView, ...]
    slugs: Mapping[str, str]
    images: Mapping[str, ShownImage] = field(default_factory=dict, repr=False)
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
        return self.slugs[self.analysis.name]

    @property
    def title(self) -> str:
        """What these pages are called: the kind, and the name where it is another."""
        kind = self.analysis.kind.capitalize()
        return kind if self.analysis.name == self.analysis.kind else f"{kind}: {self.analysis.name}"

    @cached_property
    def scan(self) -> ScanView | None:
        """The scan that the analysis is or works on; the first one if it works on none."""
        name = None
        if self.of is not None:
            name = self.of.name if self.of.kind == "scan" else self.of.needs.get("scan")
        return next((scan for scan in self.scans if name in (None, scan.name)), None)

    @property
    def layers(self) -> tuple[LayerView, ...]:
        """The layers of that scan, in the order of the network."""
        return () if self.scan is None else self.scan.layers

    def layer(self, name: str) -> LayerView | None:
        """A layer of that scan by its name; None if it was not scanned."""
        return next((layer for layer in self.layers if layer.name == name), None)

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

    def image_page(self, identity: str) -> str:
        """The page of an image that is shown whole: a stable address."""
        return f"images/{identity}.html"


def load_site(results: Results) -> Site:
    """The site of a run with every scan that can be read; its images are not known yet."""
    folders = slugs(results.analyses, RESERVED)
    scans = [each for each in results.analyses.values() if each.kind == "scan" and each.is_readable]
    views = [
        _scan(results, scan, "" if scan.name == "scan" else f"{folders[scan.name]}/")
        for scan in sorted(scans, key=lambda each: each.name != "scan")
    ]
    return Site(results, tuple(views), folders)


def with_images(site: Site, others: Collection[str]) -> Site:
    """The site with its images: every winner, and `others` by id."""
    wins: defaultdict[str, list[Win]] = defaultdict(list)
    for scan in site.scans:
        for layer in scan.layers:
            for feature in layer.features:
                for winner in feature.winners:
                    wins[winner.image].append(Win(layer, feature, winner))
    wanted = wins.keys() | set(others)
    classes = site.results.classes
    images = {
        image.id: ShownImage(
            id=image.id,
            key=image.key,
            label=class_name(classes, image.label),
            predicted=class_name(classes, image.predicted),
            probability=image.probability,
            ref=image.ref,
            # A feature that is inactive in an image may list it for want of another.
            wins=tuple(win for win in wins.get(image.id, ()) if win.winner.score != 0),
        )
        for image in (site.results.find_images(wanted) if wanted else ())
    }
    if missing := sorted(wanted - images.keys()):
        raise UsageError(
            f"{site.results.run}: image {missing[0]!r} is to be shown, and no scan has accepted it"
        )
    return replace(site, images=images)


def class_name(classes: Sequence[str] | None, label: Any) -> str | None:
    """The name of a class, or its number where names are not known; None without a label."""
    if pd.isna(label):
        return None
    index = int(label)
    if classes is not None and 0 <= index < len(classes):
        return str(classes[index])
    return f"class {index}"


def _scan(results: Results, scan: AnalysisResults, folder: str) -> ScanView:
    of_scan = [
        each
        for each in results.analyses.values()
        if each.kind == "deconvolve" and each.is_readable and each.needs.get("scan") == scan.name
    ]
    deconvolution = min(of_scan, key=lambda each: each.name != "deconvolve", default=None)
    slug = slugs(scan.layers)
    layers = [
        _layer(results, scan, layer, deconvolution, (folder, slug[layer.name]))
        for layer in scan.layers.values()
    ]
    return ScanView(scan, deconvolution, folder, tuple(layers))


def _layer(
    results: Results,
    scan: AnalysisResults,
    layer: Layer,
    deconvolution: AnalysisResults | None,
    place: tuple[str, str],
) -> LayerView:
    frame = scan.winners[scan.winners["layer"] == layer.name]
    frame = frame.sort_values(["feature", "rank"])
    winners: dict[int, list[Winner]] = {}
    of_winners: Iterable[Any] = frame.itertuples(index=False)
    for row, box in zip(of_winners, boxes(frame), strict=True):
        winners.setdefault(int(row.feature), []).append(_winner(results, row, box))
    table = scan.features
    table = table[table["layer"] == layer.name].sort_values("feature")
    rows: Iterable[Any] = table.itertuples(index=False)
    features = tuple(_feature(results, row, winners.get(int(row.feature), [])) for row in rows)
    box = next((w.box for f in features for w in f.winners if w.box is not None), None)
    size = results.preprocessing.crop if box is None else (box.y1 - box.y0, box.x1 - box.x0)
    kept = max((len(feature.winners) for feature in features), default=0)
    projected = deconvolution is not None and deconvolution.has_array(
        f"projections.zarr/{layer.name}"
    )
    return LayerView(layer, scan.name, *place, projected, size, kept, features)


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
