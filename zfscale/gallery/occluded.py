"""What occlusion found, image by image, from the tables `occlusion_images`, `occlusion`,
`occlusion_features` and `occlusion_projections`.

They are read once, side by side, batch by batch: what is held does not grow with the number of
images as long as all have them in the same order, as a job writes them. Knows no HTML.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zfscale.records import Box
from zfscale.runs.analysis_results import AnalysisResults

Grid = NDArray[np.float64]
Numbers = Mapping[str, NDArray[np.float64]]

IMAGES, POSITIONS, FEATURES = "occlusion_images", "occlusion", "occlusion_features"
PROJECTIONS = "occlusion_projections"


@dataclass(frozen=True, slots=True)
class Occluded:
    """An image that was occluded, and how. Pixels are those of the network's input.

    `total` is the total activation of the strongest map (`layer`, `feature`) and `probability`
    that of class `target`, both without the occluder; `box` is the receptive field of the unit
    (y, x) of that map. `occluder`, `stride` and `grid` (of positions) are (vertical, horizontal).
    """

    id: str
    key: str
    label: int | None
    target: int | None
    predicted: int | None
    probability: float | None
    layer: str
    feature: int
    total: float
    unit: tuple[int, int]
    box: Box | None
    occluder: tuple[int, int]
    stride: tuple[int, int]
    grid: tuple[int, int]
    method: str

    @property
    def cover(self) -> tuple[float, float, float, float]:
        """(x, y, width, height) of its maps on the image: one stride a position, each about the
        centre of the occluder that stood there.
        """
        height, width = self.occluder
        vertical, horizontal = self.stride
        rows, columns = self.grid
        left, top = (width - horizontal) / 2, (height - vertical) / 2
        return left, top, columns * horizontal, rows * vertical


@dataclass(frozen=True)
class ExtraFeature:
    """A feature that the job asked for: its total activation under the occluder, and without it."""

    activation: Grid
    total: float


@dataclass(frozen=True)
class Projected:
    """The strongest unit projected down to the image: `pixels` (height, width, 3) float32, from
    (x, y) on in pixels of the network's input.
    """

    x: int
    y: int
    pixels: NDArray[np.float32]


@dataclass(frozen=True)
class Maps:
    """The same image under the occluder: (rows, columns) float64, NaN where no row was stored.

    `activation` is the total activation of the strongest map, `probability` that of the target,
    `predicted` the most probable class (a whole number); `extra` are features
    that the job asked for.
    `projection` is None where the network cannot be deconvolved.
    """

    activation: Grid
    probability: Grid
    predicted: Grid
    extra: Mapping[int, ExtraFeature]
    projection: Projected | None


def read_images(analysis: AnalysisResults) -> Iterator[Occluded]:
    """The images in the order of their table."""
    for batch in analysis.dataset(IMAGES).to_batches():
        yield from map(_image, batch.to_pylist())


def count_extra_features(analysis: AnalysisResults) -> int:
    """How many features the option `features` added to the strongest one, in every image."""
    if FEATURES not in analysis.tables:
        return 0
    rows: int = analysis.dataset(FEATURES).count_rows()
    places: int = analysis.dataset(POSITIONS).count_rows()
    return round(rows / max(1, places))


def count_projections(analysis: AnalysisResults) -> int:
    """In how many images the strongest unit was projected down to pixels."""
    if PROJECTIONS not in analysis.tables:
        return 0
    rows: int = analysis.dataset(PROJECTIONS).count_rows()
    return rows


def read_maps(analysis: AnalysisResults) -> Iterator[tuple[Occluded, Maps]]:
    """The images in the order of their table, each with its maps."""
    names = ("activation", "probability", "predicted")
    positions = _Rows(analysis, POSITIONS, ("y", "x", *names))
    count = count_extra_features(analysis)
    columns = ("feature", "y", "x", "activation", "unoccluded")
    features = _Rows(analysis, FEATURES, columns) if count else None
    projections = _projections(analysis)
    ahead = next(projections, None)
    for image in read_images(analysis):
        projection = None
        if ahead is not None and ahead[0] == image.id:
            projection, ahead = ahead[1], next(projections, None)
        places = image.grid[0] * image.grid[1]
        rows = positions.take(image.id, places)
        extra = {}
        if features is not None:
            extra = _extra_features(image, features.take(image.id, places * count))
        activation, probability, predicted = (_grid(image, rows, name) for name in names)
        yield image, Maps(activation, probability, predicted, extra, projection)


def _projections(analysis: AnalysisResults) -> Iterator[tuple[str, Projected]]:
    """Image and projection, in the order of `occlusion_images`; a few are held at a time."""
    if PROJECTIONS not in analysis.tables:
        return
    for batch in analysis.dataset(PROJECTIONS).to_batches(batch_size=8):
        for number in range(len(batch)):
            row = {name: batch[name][number] for name in batch.schema.names}
            y, x, height, width = (row[name].as_py() for name in ("y0", "x0", "height", "width"))
            values = row["projection"].values.to_numpy()
            yield row["image_id"].as_py(), Projected(x, y, values.reshape(height, width, 3))


class _Rows:
    """A long table, given out image by image.

    Rows that come before those of the image that is asked for are held until theirs is.
    """

    def __init__(self, analysis: AnalysisResults, table: str, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._batches = analysis.dataset(table).to_batches(columns=["image_id", *columns])
        self._held: defaultdict[str, list[pa.RecordBatch]] = defaultdict(list)

    def take(self, identity: str, count: int) -> Numbers:
        """The `count` rows of an image, or all that there are, as columns of float64."""
        while sum(len(piece) for piece in self._held.get(identity, ())) < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            runs = pc.run_end_encode(batch["image_id"])
            start = 0
            for image, stop in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                self._held[image].append(batch.slice(start, stop - start))
                start = stop
        pieces = self._held.pop(identity, [])
        return {
            name: np.concatenate([np.empty(0), *(_numbers(piece[name]) for piece in pieces)])
            for name in self._columns
        }


def _grid(image: Occluded, rows: Numbers, name: str) -> Grid:
    """A column by row and column of the positions."""
    grid = np.full(image.grid, np.nan)
    at = rows["y"].astype(int) // image.stride[0], rows["x"].astype(int) // image.stride[1]
    grid[at] = rows[name]
    return grid


def _extra_features(image: Occluded, rows: Numbers) -> dict[int, ExtraFeature]:
    maps = {}
    for feature in np.unique(rows["feature"]).astype(int).tolist():
        own = {name: values[rows["feature"] == feature] for name, values in rows.items()}
        maps[feature] = ExtraFeature(_grid(image, own, "activation"), float(own["unoccluded"][0]))
    return maps


def _numbers(column: pa.Array) -> Grid:
    """A column as float64, null as NaN."""
    values: Grid = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _image(row: dict[str, Any]) -> Occluded:
    y0 = row["y0"]
    return Occluded(
        id=row["image_id"],
        key=row["key"],
        label=row["label"],
        target=row["target"],
        predicted=row["predicted"],
        probability=row["probability"],
        layer=row["layer"],
        feature=row["feature"],
        total=row["total"],
        unit=(row["y"], row["x"]),
        box=None if y0 is None else Box(y0, row["x0"], row["y1"], row["x1"]),
        occluder=(row["height"], row["width"]),
        stride=(row["stride_y"], row["stride_x"]),
        grid=(row["rows"], row["columns"]),
        method=row["method"],
    )
