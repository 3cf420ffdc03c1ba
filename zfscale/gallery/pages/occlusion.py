"""Occlusion (paper, Figure 7): a page for each image, with maps by position of the occluder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from zfscale.gallery import colours, names, pictures
from zfscale.gallery.heatmaps import ClassMap, MapRange, map_range
from zfscale.gallery.occluded import (
    IMAGES,
    Grid,
    Maps,
    Occluded,
    count_extra_features,
    count_projections,
    read_images,
    read_maps,
)
from zfscale.gallery.pages import File, Page, Panel, with_neighbours
from zfscale.gallery.pictures import Pixels
from zfscale.gallery.site import Feature, LayerView, Site, class_name
from zfscale.records import Box

KIND = "occlusion"
PER_PAGE = 200
"""Images on a page of the index."""

SAMPLES = 8
"""Images on the first page, and on that of a feature."""


@dataclass(frozen=True)
class Cell:
    """An image as a cell of a page shows it: `title` names its class."""

    item: Occluded
    title: str
    folder: str

    @property
    def measure(self) -> str:
        """What is lost under the occluder: the probability, without classes the activation."""
        return "total activation" if self.item.probability is None else "probability"

    @property
    def change(self) -> str:
        """That value without the occluder."""
        if self.item.probability is None:
            return names.number(self.item.total)
        return f"{self.item.probability:.2f}"

    @property
    def page(self) -> str:
        """The page of the image: a stable address."""
        return f"{self.folder}/{self.item.id}.html"

    def file(self, what: str) -> str:
        """A picture of it: `activation`, `activation-FEATURE`, `projection`, `probability`,
        `classes`, `loss`; or its `data`.
        """
        return f"{self.folder}/{self.item.id}" + (".js" if what == "data" else f"-{what}.png")


@dataclass(frozen=True)
class Shown(Cell):
    """An image with what its maps span.

    `probability` is None where the network has no classes. `field` is (x, y, width, height) of
    the part of the image that the strongest unit sees.
    """

    activation: MapRange
    probability: MapRange | None
    field: tuple[int, int, int, int] | None

    @property
    def loss(self) -> MapRange:
        """The map that says how much is lost: of the probability, else of the activation."""
        return self.probability or self.activation

    @property
    def change(self) -> str:
        """That value without the occluder, and where it is lowest, to be compared with others."""
        before, least = self.loss.before, self.loss.least
        if self.probability is None:
            return f"{names.number(before)} → {names.number(least)}"
        return f"{before:.2f} → {least:.2f}"

    @property
    def at_lowest(self) -> tuple[int, int] | None:
        """(x, y) of the occluder's top left corner where that map is lowest."""
        at, stride = self.loss.at, self.item.stride
        return None if at is None else (at[1] * stride[1], at[0] * stride[0])


@dataclass(frozen=True)
class Evidence:
    """The feature that was followed; `tile` is the row and column of this image in its montages,
    None if it is not among the winners there.
    """

    layer: LayerView
    feature: Feature
    tile: tuple[int, int] | None


def count(site: Site) -> int:
    """A page an image with its data and maps, and the pages of the index."""
    extra = count_extra_features(site.analysis)
    images = read_images(site.analysis)
    each = sum((4 if image.probability is None else 6) + extra for image in images)
    return each + count_projections(site.analysis) + _index_pages(site)


def images(site: Site) -> Iterator[str]:
    """All its images."""
    return (image.id for image in read_images(site.analysis))


def overview_panel(site: Site) -> Panel | None:
    """The first images, with the maps of how much is lost."""
    count = site.analysis.dataset(IMAGES).count_rows()
    if count == 0:
        return None
    first = islice(read_maps(site.analysis), SAMPLES)
    values = {"images": [_shown(site, item, maps) for item, maps in first], "count": count}
    return Panel(site.title, "occlusion-overview.html", values, address=_index(site, 0))


def feature_panels(site: Site) -> Iterator[tuple[str, int, Panel]]:
    """For the feature of each strongest map the first images in which it was that."""
    cells: defaultdict[tuple[str, int], list[Cell]] = defaultdict(list)
    for image in read_images(site.analysis):
        of_feature = cells[image.layer, image.feature]
        if len(of_feature) < SAMPLES:
            of_feature.append(_cell(site, image))
    for (layer, feature), of_feature in cells.items():
        values = {"images": of_feature}
        panel = Panel(site.title, "occlusion-feature.html", values, address=_index(site, 0))
        yield layer, feature, panel


def image_panels(site: Site) -> Iterator[tuple[str, Panel]]:
    """For each image the map of how much is lost."""
    for image in read_images(site.analysis):
        cell = _cell(site, image)
        target = class_name(site.results.classes, image.target)
        values = {"image": cell, "target": target}
        yield image.id, Panel(site.title, "occlusion-image.html", values, address=cell.page)


def pages(site: Site) -> Iterator[Page]:
    """occlusion/ID.html for every image, chained, and after each PER_PAGE of them their index."""
    shown = ((_shown(site, item, maps), maps) for item, maps in read_maps(site.analysis))
    collected: list[Shown] = []
    at, last = 0, _index_pages(site) - 1
    for before, (image, maps), after in with_neighbours(shown):
        collected.append(image)
        values = {
            "previous": before and before[0],
            "next": after and after[0],
            "up": f"{_index(site, at)}#i{image.item.id}",
        }
        yield _image_page(site, image, maps, values)
        if len(collected) == PER_PAGE or after is None:
            listed = {
                "images": collected,
                "previous": _index(site, at - 1) if at > 0 else None,
                "next": _index(site, at + 1) if at < last else None,
                "number": at + 1,
                "pages": last + 1,
            }
            yield Page(_index(site, at), "occlusion-index.html", listed)
            collected, at = [], at + 1


def _image_page(site: Site, image: Shown, maps: Maps, links: Mapping[str, Any]) -> Page:
    item = image.item
    ranges = {"activation": (image.activation, maps.activation)}
    if image.probability is not None:
        ranges["probability"] = (image.probability, maps.probability)
    extra = {number: map_range(one.activation, one.total) for number, one in maps.extra.items()}
    for number, span in extra.items():
        ranges[f"activation-{number}"] = (span, maps.extra[number].activation)
    drawn = {what: _picture(span, grid) for what, (span, grid) in ranges.items()}
    # From zero, so that maps of several images can be compared.
    span, grid = ranges["activation" if image.probability is None else "probability"]
    drawn["loss"] = colours.on_scale(grid, min(0.0, span.low), span.high)
    if maps.projection is not None:
        drawn["projection"] = pictures.to_grey(maps.projection.pixels)
    data: dict[str, Any] = {"cover": item.cover, "stride": item.stride, "grid": item.grid}
    data["values"] = {what: _texts(span, grid) for what, (span, grid) in ranges.items()}
    values: dict[str, Any] = {
        "image": image,
        "item": item,
        "predicted": class_name(site.results.classes, item.predicted),
        "target": class_name(site.results.classes, item.target),
        "extra": extra,
        "projection": maps.projection,
        "evidence": _evidence(site, item),
        "scale": colours.SCALE,
        "occluder": site.occluder(),
    }
    if image.probability is not None:
        classes = ClassMap(maps.predicted, item.target, site.results.classes)
        values["legend"] = classes.legend
        drawn["classes"] = classes.picture()
        data["classes"] = [classes.name(label) for label in classes.order]
        numbers: dict[float, int] = {label: at for at, label in enumerate(classes.order)}
        data["values"]["class"] = [numbers.get(x) for x in maps.predicted.ravel().tolist()]
    script = f"globalThis.zfscaleMaps={names.script_json(data)};\n"
    files = [File(image.file("data"), script.encode("ascii"))]
    for what, pixels in drawn.items():
        files.append(File(image.file(what), pictures.encode(pixels, "png")))
    return Page(image.page, "occlusion.html", {**values, **links}, tuple(files))


def _cell(site: Site, item: Occluded) -> Cell:
    return Cell(item, class_name(site.results.classes, item.label) or "no label", site.slug)


def _shown(site: Site, item: Occluded, maps: Maps) -> Shown:
    cell = _cell(site, item)
    return Shown(
        cell.item,
        cell.title,
        cell.folder,
        map_range(maps.activation, item.total),
        None if item.probability is None else map_range(maps.probability, item.probability),
        None if item.box is None else _inside(item.box, site.input),
    )


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a box inside the image, as (x, y, width, height)."""
    y0, x0, y1, x1 = box
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, size[0]), min(x1, size[1])
    return left, top, right - left, bottom - top


def _evidence(site: Site, item: Occluded) -> Evidence | None:
    """None if the layer was not scanned."""
    layer = site.layer(item.layer)
    feature = None if layer is None else layer.feature(item.feature)
    if layer is None or feature is None:
        return None
    ranks = (winner.rank for winner in feature.winners if winner.image == item.id)
    rank = next(ranks, layer.shown)
    return Evidence(layer, feature, divmod(rank, layer.columns) if rank < layer.shown else None)


def _picture(span: MapRange, values: Grid) -> Pixels:
    return colours.on_scale(values, span.low, span.high)


def _texts(span: MapRange, values: Grid) -> list[str]:
    """The values row by row, as they are to be read."""
    return [span.text(value) for value in values.ravel().tolist()]


def _index(site: Site, at: int) -> str:
    """The address of a page of the index."""
    return f"{site.slug}/index.html" if at == 0 else f"{site.slug}/index-{at + 1}.html"


def _index_pages(site: Site) -> int:
    images: int = site.analysis.dataset(IMAGES).count_rows()
    return math.ceil(images / PER_PAGE)
