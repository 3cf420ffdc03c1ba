"""Correspondence (paper, Table 1 and Figure 8): the table, and images with a part covered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from zfscale.gallery import charts
from zfscale.gallery.charts import Axis
from zfscale.gallery.pages import Page, Panel
from zfscale.gallery.site import Site, class_name
from zfscale.records import Box

KIND, BOXES = "correspondence", "correspondence_images"

SHOWN = 12
"""Images of each part."""

COLUMNS = ["image_id", "key", "label", "part", "draw", "y0", "x0", "y1", "x1"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and standard deviation over the pairs, and the mean by chance; None without a pair."""

    images: int
    pairs: int
    mean: float | None
    std: float | None
    chance: float | None


@dataclass(frozen=True)
class Line:
    """A part: for each layer the part itself and random boxes of its size, None where absent.

    `pooled` is the line of the random boxes of all parts.
    """

    name: str
    cells: tuple[tuple[Cell | None, Cell | None], ...]

    @property
    def pooled(self) -> bool:
        """Whether no part itself was covered."""
        return all(own is None for own, _ in self.cells)

    @property
    def counted(self) -> Cell | None:
        """A cell that tells the numbers of images and pairs: of the part, else of the boxes."""
        cells = [cell for pair in self.cells for cell in pair if cell is not None]
        return cells[0] if cells else None


@dataclass(slots=True)
class Covered:
    """An image, the box of a part in it, and a random box of the same size if there is one."""

    image: str
    key: str
    title: str
    box: Box | None = None
    random: Box | None = None


def count(site: Site) -> int:  # noqa: ARG001
    """One page."""
    return 1


def images(site: Site) -> Iterator[str]:
    """The first images of each part."""
    return (image.image for images in _covered(site).values() for image in images)


def overview_panel(site: Site) -> Panel | None:
    """An image of each part, with what was measured in the last layer."""
    layers, lines = _table(site)
    if not lines:
        return None
    cells = {line.name: line.cells[-1] for line in lines}
    values = {
        "layer": layers[-1],
        "parts": [
            (part, each[0], cells.get(part)) for part, each in _covered(site).items() if each
        ],
        "count": sum(not line.pooled for line in lines),
        "colour": site.occluder(),
    }
    return Panel(site.title, "correspondence-overview.html", values, address=_address(site))


def image_panels(site: Site) -> Iterator[tuple[str, Panel]]:
    """For each of the first images of a part the image with that part covered."""
    parts: dict[str, list[tuple[str, Covered]]] = {}
    for part, images in _covered(site).items():
        for image in images:
            parts.setdefault(image.image, []).append((part, image))
    for identity, own in parts.items():
        values = {"parts": own, "colour": site.occluder()}
        panel = Panel(site.title, "correspondence-image.html", values, address=_address(site))
        yield identity, panel


def pages(site: Site) -> Iterator[Page]:
    """correspondence.html: the table, its chart, and the covered images part by part."""
    layers, lines = _table(site)
    values = {
        "layers": layers,
        "lines": lines,
        "axis": _axis(lines),
        "plot": charts.WIDTH,
        "shown": _covered(site),
        "most": SHOWN,
        "colour": site.occluder(),
    }
    yield Page(_address(site), "correspondence.html", values)


def _address(site: Site) -> str:
    return f"{site.slug}.html"


def _table(site: Site) -> tuple[list[str], list[Line]]:
    """The layers in the order of the network, and a line for each part, the pooled one last."""
    cells: dict[tuple[str, str, bool], Cell] = {}
    rows: Iterable[Any] = site.analysis.table().itertuples(index=False)
    for row in rows:
        values = (row.mean, row.std, row.chance)
        cell = Cell(int(row.images), int(row.pairs), *map(_number, values))
        cells[str(row.layer), str(row.part), bool(row.random)] = cell
    measured = dict.fromkeys(layer for layer, _, _ in cells)
    layers = [layer.name for layer in site.layers if layer.name in measured]
    layers += [layer for layer in measured if layer not in layers]
    parts = dict.fromkeys(part for _, part, _ in cells)
    lines = [
        Line(
            part,
            tuple(
                (cells.get((layer, part, False)), cells.get((layer, part, True)))
                for layer in layers
            ),
        )
        for part in parts
    ]
    return layers, sorted(lines, key=lambda line: line.pooled)


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _axis(lines: Sequence[Line]) -> Axis:
    """One axis for all layers, from 0."""
    cells = [cell for line in lines for pair in line.cells for cell in pair if cell is not None]
    ends = [cell.mean + (cell.std or 0.0) for cell in cells if cell.mean is not None]
    chances = [cell.chance for cell in cells if cell.chance is not None]
    return charts.axis([0.0, *ends, *chances], whole=True)


def _covered(site: Site) -> dict[str, list[Covered]]:
    """The first images of each part, read batch by batch: the table grows with the images."""
    if BOXES not in site.analysis.tables:
        return {}
    by_part: dict[str, dict[str, Covered]] = {}
    for batch in site.analysis.dataset(BOXES).to_batches(columns=COLUMNS):
        for row in batch.to_pylist():
            images = by_part.setdefault(row["part"], {})
            if row["image_id"] not in images:
                if len(images) == SHOWN:
                    continue
                title = class_name(site.results.classes, row["label"]) or "no label"
                images[row["image_id"]] = Covered(row["image_id"], row["key"], title)
            image = images[row["image_id"]]
            box = Box(row["y0"], row["x0"], row["y1"], row["x1"])
            if row["draw"] is None:
                image.box = box
            elif image.random is None:
                image.random = box
    return {
        part: [image for image in images.values() if image.box is not None]
        for part, images in by_part.items()
    }
