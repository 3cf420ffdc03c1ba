"""Occlusion (paper, Figure 7): a page for each image, with maps by position of the occluder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

from zfscale.gallery import colours, names, pictures
from zfscale.gallery.heatmaps import ClassMap, Heat, heat
from zfscale.gallery.occluded import FACTS, Grid, Maps, Occluded, facts, maps, projected, watched
from zfscale.gallery.output import File
from zfscale.gallery.pages import Chapter, Page
from zfscale.gallery.pictures import Pixels
from zfscale.gallery.site import Feature, LayerView, Site, class_name
from zfscale.records import Box

Item = TypeVar("Item")

KIND = "occlusion"
PER_PAGE = 200
"""Images on a page of the index."""

SAMPLES = 8
"""Images on the first page."""


@dataclass(frozen=True)
class Shown:
    """An image with what its maps span, as pages show it.

    `title` names its class; `probability` is None where the network has no classes. `field` is
    (x, y, width, height) of the part of the image that the strongest unit sees.
    """

    item: Occluded
    title: str
    activation: Heat
    probability: Heat | None
    field: tuple[int, int, int, int] | None
    folder: str

    @property
    def fall(self) -> Heat:
        """The map that says how much is lost: of the probability, else of the activation."""
        return self.probability or self.activation

    @property
    def change(self) -> str:
        """That value without the occluder, and where it is lowest, to be compared with others."""
        before, least = self.fall.before, self.fall.least
        if self.probability is None:
            return f"{names.number(before)} → {names.number(least)}"
        return f"{before:.2f} → {least:.2f}"

    @property
    def at_lowest(self) -> tuple[int, int] | None:
        """(x, y) of the occluder's top left corner where that map is lowest."""
        at, stride = self.fall.at, self.item.stride
        return None if at is None else (at[1] * stride[1], at[0] * stride[0])

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
class Evidence:
    """The feature that was followed; `tile` is the row and column of this image in its montages,
    None if it is not among the winners there.
    """

    layer: LayerView
    feature: Feature
    tile: tuple[int, int] | None


def count(site: Site) -> int:
    """A page an image with its data and maps, and the pages of the index."""
    each = sum(4 if item.probability is None else 6 for item in facts(site.analysis))
    each += watched(site.analysis) * sum(1 for _ in facts(site.analysis))
    return each + projected(site.analysis) + _index_pages(site)


def chapter(site: Site) -> Chapter | None:
    """The first images, with the maps of how much is lost."""
    images = frozenset(item.id for item in facts(site.analysis))
    if not images:
        return None
    found = islice(maps(site.analysis), SAMPLES)
    shown = [_shown(site, item, grids) for item, grids in found]
    values = {"images": shown, "count": len(images), "title": site.title}
    return Chapter(site.analysis.name, _index(site, 0), 7, "occlusion-strip.html", values, images)


def pages(site: Site) -> Iterator[Page]:
    """occlusion/ID.html for every image, chained, and after each PER_PAGE of them their index."""
    shown = ((_shown(site, item, grids), grids) for item, grids in maps(site.analysis))
    collected: list[Shown] = []
    at, last = 0, _index_pages(site) - 1
    for before, (image, grids), after in _around(shown):
        collected.append(image)
        values = {
            "previous": before and before[0],
            "next": after and after[0],
            "up": f"{_index(site, at)}#i{image.item.id}",
        }
        yield _image_page(site, image, grids, values)
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


def _image_page(site: Site, image: Shown, found: Maps, links: Mapping[str, Any]) -> Page:
    item = image.item
    heats = {"activation": (image.activation, found.activation)}
    if image.probability is not None:
        heats["probability"] = (image.probability, found.probability)
    further = {number: heat(one.activation, one.total) for number, one in found.further.items()}
    for number, span in further.items():
        heats[f"activation-{number}"] = (span, found.further[number].activation)
    drawn = {what: _picture(span, grid) for what, (span, grid) in heats.items()}
    # From zero, so that maps of several images can be compared.
    span, grid = heats["activation" if image.probability is None else "probability"]
    drawn["loss"] = colours.heat(grid, min(0.0, span.low), span.high)
    if found.projection is not None:
        drawn["projection"] = pictures.to_grey(found.projection.pixels)
    data: dict[str, Any] = {"cover": item.cover, "stride": item.stride, "grid": item.grid}
    data["values"] = {what: _texts(span, grid) for what, (span, grid) in heats.items()}
    values: dict[str, Any] = {
        "image": image,
        "item": item,
        "predicted": class_name(site.results.classes, item.predicted),
        "target": class_name(site.results.classes, item.target),
        "further": further,
        "projection": found.projection,
        "evidence": _evidence(site, item),
        "scale": colours.HEAT,
        "occluder": site.occluder(),
    }
    if image.probability is not None:
        classes = ClassMap(found.predicted, item.target, site.results.classes)
        values["legend"] = classes.legend
        drawn["classes"] = classes.picture()
        data["classes"] = [classes.name(label) for label in classes.order]
        numbers: dict[float, int] = {label: at for at, label in enumerate(classes.order)}
        data["values"]["class"] = [numbers.get(x) for x in found.predicted.ravel().tolist()]
    script = f"globalThis.zfscaleMaps={names.script_json(data)};\n"
    files = [File(image.file("data"), script.encode("ascii"))]
    for what, pixels in drawn.items():
        files.append(File(image.file(what), pictures.encode(pixels, "png")))
    return Page(image.page, "occlusion.html", {**values, **links}, tuple(files))


def _shown(site: Site, item: Occluded, found: Maps) -> Shown:
    seen = item.probability is not None
    return Shown(
        item,
        class_name(site.results.classes, item.label) or "no label",
        heat(found.activation, item.total),
        heat(found.probability, item.probability) if seen else None,
        None if item.box is None else _inside(item.box, site.input),
        site.slug,
    )


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a box inside the image, as (x, y, width, height)."""
    y0, x0, y1, x1 = box
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, size[0]), min(x1, size[1])
    return left, top, right - left, bottom - top


def _evidence(site: Site, item: Occluded) -> Evidence | None:
    """None if the layer was not scanned."""
    layer = next((layer for layer in site.layers if layer.name == item.layer), None)
    if layer is None:
        return None
    feature = next(one for one in layer.features if one.number == item.feature)
    ranks = (winner.rank for winner in feature.winners if winner.image == item.id)
    rank = next(ranks, layer.shown)
    return Evidence(layer, feature, divmod(rank, layer.columns) if rank < layer.shown else None)


def _picture(span: Heat, values: Grid) -> Pixels:
    return colours.heat(values, span.low, span.high)


def _texts(span: Heat, values: Grid) -> list[str]:
    """The values row by row, as they are to be read."""
    return [span.text(value) for value in values.ravel().tolist()]


def _around(items: Iterable[Item]) -> Iterator[tuple[Item | None, Item, Item | None]]:
    """Each item with the one before and the one after it, three held at a time."""
    ends: list[Item | None] = [None]
    for (before, item), (_, after) in pairwise(pairwise(chain(ends, items, ends))):
        if item is not None:
            yield before, item, after


def _index(site: Site, at: int) -> str:
    """The address of a page of the index."""
    return f"{site.slug}/index.html" if at == 0 else f"{site.slug}/index-{at + 1}.html"


def _index_pages(site: Site) -> int:
    images: int = site.analysis.dataset(FACTS).count_rows()
    return math.ceil(images / PER_PAGE)
