"""What `occlusion` publishes: its tables, column by column, and the rows of one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.convnet.incremental.inference import Grid
from zfscale.convnet.incremental.occlusion import Baseline, Sensitivity
from zfscale.convnet.network import Network
from zfscale.records import Column, Columns, Image, Layer, Table

_IMAGE = (
    Column("image_id", "string", "content hash of the image"),
    Column("key", "string", "name of the image in its collection"),
)
_PLACE = (
    Column("y", "int64", "top of the occluder in pixels of the network's input"),
    Column("x", "int64", "left of the occluder"),
)

POSITIONS = Table(
    name="occlusion",
    version=1,
    columns=(
        *_IMAGE,
        *_PLACE,
        Column("activation", "float64", "total activation of the strongest map of the layer"),
        Column("probability", "float32", "of the target (softmax)", True),
        Column("predicted", "int64", "most probable class", True),
    ),
    key=("image_id", "y", "x"),
    identity=("image_id", "y", "x", "activation", "probability", "predicted"),
)

FEATURES = Table(
    name="occlusion_features",
    version=1,
    columns=(
        *_IMAGE,
        Column("feature", "int64", "a further feature of the layer"),
        *_PLACE,
        Column("activation", "float64", "total activation of its map"),
        Column("unoccluded", "float64", "the same without an occluder"),
    ),
    key=("image_id", "feature", "y", "x"),
    identity=("image_id", "feature", "y", "x", "activation", "unoccluded"),
)

IMAGES = Table(
    name="occlusion_images",
    version=1,
    columns=(
        *_IMAGE,
        Column("label", "int64", "true class", True),
        Column("target", "int64", "class whose probability is reported", True),
        Column("predicted", "int64", "most probable class without an occluder", True),
        Column("probability", "float32", "of the target, without an occluder (softmax)", True),
        Column("layer", "string", "layer that is watched"),
        Column("feature", "int64", "its feature with the largest activation in this image"),
        Column("total", "float64", "total activation of its map, without an occluder"),
        Column("y", "int64", "row of the largest activation in the map"),
        Column("x", "int64", "column of the largest activation in the map"),
        Column("y0", "int64", "top of its receptive field in input pixels, may be < 0", True),
        Column("x0", "int64", "left of its receptive field, may be < 0", True),
        Column("y1", "int64", "bottom of its receptive field, exclusive", True),
        Column("x1", "int64", "right of its receptive field, exclusive", True),
        Column("height", "int64", "height of the occluder in input pixels"),
        Column("width", "int64", "width of the occluder"),
        Column("stride_y", "int64", "distance of positions down"),
        Column("stride_x", "int64", "distance of positions across"),
        Column("rows", "int64", "positions down"),
        Column("columns", "int64", "positions across"),
        Column("method", "string", "incremental, or full: the network run on each occluded image"),
    ),
    key=("image_id",),
    identity=(
        *("image_id", "label", "target", "predicted", "probability", "layer", "feature", "total"),
        *("y", "x", "height", "width", "stride_y", "stride_x", "rows", "columns"),
    ),
)

PROJECTIONS = Table(
    name="occlusion_projections",
    version=1,
    columns=(
        *_IMAGE,
        Column("layer", "string", "layer that is watched"),
        Column("feature", "int64", "its feature with the largest activation in this image"),
        Column("y0", "int64", "first row of the network's input that the projection covers"),
        Column("x0", "int64", "first column that it covers"),
        Column("height", "int64", "rows that it covers"),
        Column("width", "int64", "columns that it covers"),
        Column(
            "projection",
            "list<float32>",
            "the strongest unit down to the normalised input, (height, width, 3) RGB row by row",
        ),
    ),
    key=("image_id",),
    identity=("image_id", "layer", "feature", "y0", "x0", "height", "width", "projection"),
)


def positions(
    image: Image, places: Grid, rows: tuple[int, int], sensitivity: Sensitivity
) -> dict[str, NDArray[Any]]:
    """Rows of `occlusion` for some rows of the grid."""
    columns = _places(image, places, rows)
    count = len(columns["y"])
    probability = np.ma.masked_all(count, np.float32)
    predicted = np.ma.masked_all(count, np.int64)
    if sensitivity.probability is not None and sensitivity.predicted is not None:
        probability = np.ma.masked_array(sensitivity.probability.ravel())
        predicted = np.ma.masked_array(sensitivity.predicted.ravel())
    return columns | {
        "activation": sensitivity.activation[:, :, 0].ravel(),
        "probability": probability,
        "predicted": predicted,
    }


def extra_features(
    image: Image,
    places: Grid,
    rows: tuple[int, int],
    sensitivity: Sensitivity,
    features: Mapping[int, float],
) -> list[dict[str, NDArray[Any]]]:
    """Rows of `occlusion_features`, by feature: `features` maps each to its total unoccluded."""
    columns = _places(image, places, rows)
    count = len(columns["y"])
    return [
        columns
        | {
            "feature": np.full(count, feature),
            "activation": sensitivity.activation[:, :, number].ravel(),
            "unoccluded": np.full(count, total),
        }
        for number, (feature, total) in enumerate(features.items(), start=1)
    ]


def target_class(image: Image, baseline: Baseline) -> int | None:
    """The true class, or the predicted one where none is known; None without logits."""
    if baseline.logits is None:
        return None
    if image.label is not None and 0 <= image.label < len(baseline.logits):
        return image.label
    return int(baseline.logits.argmax())


def baseline_fields(baseline: Baseline, target: int | None) -> dict[str, Any]:
    """What a row of `occlusion_images` says of the image without an occluder."""
    feature, y, x = baseline.strongest
    fields = {"feature": feature, "y": y, "x": x, "total": float(baseline.totals([feature])[0])}
    if baseline.logits is None or target is None:
        return fields | {"target": None, "predicted": None, "probability": None}
    chances = baseline.logits.double().softmax(0)
    prediction = {"predicted": int(baseline.logits.argmax()), "probability": float(chances[target])}
    return fields | prediction | {"target": target}


def receptive_field(network: Network, layer: Layer, baseline: Baseline) -> dict[str, int | None]:
    """The receptive field of the strongest unit, where it is known."""
    if layer.field is None:
        return dict.fromkeys(("y0", "x0", "y1", "x1"))
    window = network.window(layer)
    top, left = window.origin(*baseline.strongest[1:])
    return {"y0": top, "x0": left, "y1": top + window.size[0], "x1": left + window.size[1]}


def incomplete(parts: Iterable[tuple[int, Columns]]) -> set[str]:
    """Images that gave NaN or Inf in some ranges of positions, but not in all."""
    finite: dict[int, set[str]] = {}  # ids by range
    for first, rows in parts:
        finite.setdefault(first, set()).update(rows["image_id"].tolist())
    if len(finite) < 2:
        return set()
    everywhere = set.intersection(*finite.values())
    return set().union(*finite.values()) - everywhere


def drop_images(rows: Columns, images: set[str]) -> Columns:
    """The rows of all images but some."""
    if not images:
        return rows
    kept = np.array([id_ not in images for id_ in rows["image_id"].tolist()], bool)
    return {name: values[kept] for name, values in rows.items()}


def _places(image: Image, places: Grid, rows: tuple[int, int]) -> dict[str, NDArray[Any]]:
    down = [start for start, _ in places.rows[slice(*rows)]]
    across = [start for start, _ in places.columns]
    y, x = np.meshgrid(down, across, indexing="ij")
    return {
        "image_id": np.full(y.size, image.id, dtype=object),
        "key": np.full(y.size, image.key, dtype=object),
        "y": y.ravel(),
        "x": x.ravel(),
    }
