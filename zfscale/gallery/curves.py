"""What transforms did to images, from the table `invariance`: the mean over all images, and the
curves of a few. Read once, batch by batch. Knows no HTML.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zfscale.runs.analysis_results import AnalysisResults

TABLE = "invariance"
MEASURES = ("normalised", "distance", "probability")
DRAWN = 50
"""Images with a curve of their own."""

Numbers = NDArray[np.float64]

Name = tuple[str, str, str]
"""Transform, layer and measure."""

Place = tuple[str, str, float]
"""Transform, layer and amount."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """An image with a curve of its own."""

    id: str
    key: str
    label: int | None


@dataclass(frozen=True)
class Curves:
    """All measures by amount of transform.

    `amounts` maps each transform to its amounts, rising; `means` and `single` hold the values at
    these amounts: (amounts,) over all `count` images, and (images drawn, amounts). NaN where
    nothing was stored.
    """

    count: int
    drawn: tuple[Transformed, ...]
    layers: tuple[str, ...]
    amounts: Mapping[str, tuple[float, ...]]
    means: Mapping[Name, Numbers]
    single: Mapping[Name, Numbers]


def read(analysis: AnalysisResults, order: Iterable[str]) -> Curves:
    """The curves of an analysis, its layers in the given `order`. The images drawn are the first
    of the table.
    """
    all_ids: set[str] = set()
    drawn: dict[str, Transformed] = {}
    points: dict[tuple[str, Place], list[float | None]] = {}
    totals: defaultdict[Place, Numbers] = defaultdict(lambda: np.zeros((len(MEASURES), 2)))
    columns = ["image_id", "key", "label", "transform", "layer", "amount", *MEASURES]
    for batch in analysis.dataset(TABLE).to_batches(columns=columns):
        ids = pc.unique(batch["image_id"]).to_pylist()
        all_ids.update(ids)
        rows = pa.Table.from_batches([batch])
        for place, sums in _sums(rows):
            totals[place] += sums
        first = pa.array(list(dict.fromkeys([*drawn, *ids]))[:DRAWN], pa.string())
        for row in rows.filter(pc.is_in(rows["image_id"], first)).to_pylist():
            image = Transformed(row["image_id"], row["key"], row["label"])
            drawn.setdefault(image.id, image)
            points[image.id, _place(row)] = [row[name] for name in MEASURES]

    amounts = _amounts(totals)
    means: dict[Name, Numbers] = {}
    single: dict[Name, Numbers] = {}
    for transform, layer in dict.fromkeys(place[:2] for place in totals):
        places = [(transform, layer, amount) for amount in amounts[transform]]
        sums = np.stack([totals[place] for place in places])
        missing = [None] * len(MEASURES)
        values = [[points.get((image, place), missing) for place in places] for image in drawn]
        of_images = np.array(values, np.float64)  # None becomes NaN
        for index, measure in enumerate(MEASURES):
            with np.errstate(invalid="ignore"):  # no value at all: 0 / 0
                means[transform, layer, measure] = sums[:, index, 0] / sums[:, index, 1]
            single[transform, layer, measure] = of_images[:, :, index]
    used = {layer for _, layer, _ in totals}
    in_order = [layer for layer in order if layer in used]
    layers = tuple(dict.fromkeys([*in_order, *sorted(used)]))
    return Curves(len(all_ids), tuple(drawn.values()), layers, amounts, means, single)


def first_images(analysis: AnalysisResults) -> list[str]:
    """Ids of the images that have a curve of their own; what comes after them is not read."""
    ids: dict[str, None] = {}
    for batch in analysis.dataset(TABLE).to_batches(columns=["image_id"]):
        ids |= dict.fromkeys(pc.unique(batch["image_id"]).to_pylist())
        if len(ids) >= DRAWN:
            break
    return list(ids)[:DRAWN]


def _sums(rows: pa.Table) -> Iterator[tuple[Place, Numbers]]:
    """Sum and number of the values of each measure: (measures, 2)."""
    wanted = [(name, how) for name in MEASURES for how in ("sum", "count")]
    groups = rows.group_by(["transform", "layer", "amount"], use_threads=False).aggregate(wanted)
    for row in groups.to_pylist():
        sums = [[row[f"{name}_sum"] or 0.0, row[f"{name}_count"]] for name in MEASURES]
        yield _place(row), np.array(sums)


def _amounts(places: Iterable[Place]) -> dict[str, tuple[float, ...]]:
    """The amounts of each transform, rising."""
    by_transform: defaultdict[str, set[float]] = defaultdict(set)
    for transform, _, amount in places:
        by_transform[transform].add(amount)
    return {transform: tuple(sorted(amounts)) for transform, amounts in by_transform.items()}


def _place(row: Mapping[str, Any]) -> Place:
    return row["transform"], row["layer"], row["amount"]
