"""Made-up tables of the sweeps (occlusion, invariance, correspondence) for a synthetic run.

Stored as a job stores them, so that the gallery reads them as it reads those of a job. Each takes
the `name` of the analysis, so that a run may have several of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_run import add_analysis, columns_of

from zfscale.analyses.correspondence import Correspondence
from zfscale.analyses.correspondence.analysis import CORRESPONDENCE
from zfscale.analyses.correspondence.occluders import OCCLUDERS
from zfscale.analyses.invariance import Invariance
from zfscale.analyses.invariance.analysis import INVARIANCE
from zfscale.analyses.occlusion import Occlusion
from zfscale.analyses.occlusion.tables import FEATURES, IMAGES, POSITIONS, PROJECTIONS
from zfscale.records import Table
from zfscale.runs import manifest as manifests
from zfscale.runs import tables
from zfscale.storage import open_storage

Rows = list[dict[str, Any]]


def publish(
    run: Path,
    name: str,
    parts: Sequence[tuple[Table, Rows]],
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    scan: str = "scan",
) -> None:
    """Add an analysis that works on a scan: the rows of its tables, in the order given."""
    rows = [(table, columns_of(table, part)) for table, part in parts]
    add_analysis(run, name, rows, kind=kind, options=options, needs={"scan": scan})


def images(run: Path) -> Rows:
    """The accepted images of a run: id, key, label."""
    storage = open_storage(str(run))
    published = manifests.load(storage).analyses["scan"].published.values()
    paths = [file.path for file in published if file.table == "images"]
    rows = tables.read(storage, paths, ["id", "key", "label", "status"])
    columns = (np.ma.asarray(rows[n]).tolist() for n in ("id", "key", "label", "status"))
    return [
        {"image_id": id_, "key": key, "label": label}
        for id_, key, label, status in zip(*columns, strict=True)
        if status == "ok"
    ]


def occlusion(
    run: Path,
    count: int = 5,
    classes: int | None = 3,
    layer: str = "conv2",
    grid: tuple[int, int] = (7, 6),
    pieces: int = 1,
    extra: tuple[int, ...] = (),
    projected: bool = True,
    absent: tuple[int, ...] = (),
    value: Any = "mean",
    name: str = "occlusion",
    scan: str = "scan",
) -> None:
    """Maps of the first images: a pit about one place in each. `pieces` cuts each image's rows
    into parts that are written in the opposite order; `classes` None: the network has none;
    `extra` features have the same map, doubled; `projected` units are brighter the lower a pixel
    is; rows of the grid in `absent` are not in the table; `value` is the occluder's colour."""
    occluder, stride = (8, 10), (4, 5)
    occluded: Rows = []
    parts: list[Rows] = [[] for _ in range(pieces)]
    for number, image in enumerate(images(run)[:count]):
        target = None if classes is None else (image["label"] or 0)
        occluded.append({
            **image, "target": target, "predicted": target,
            "probability": None if classes is None else 0.9, "layer": layer, "feature": number % 3,
            "total": 120.5, "y": 1, "x": 2, "y0": 5, "x0": 13, "y1": 28, "x1": 36,
            "height": occluder[0], "width": occluder[1], "stride_y": stride[0],
            "stride_x": stride[1], "rows": grid[0], "columns": grid[1], "method": "incremental",
        })  # fmt: skip
        for row, column in np.ndindex(*grid):
            if row in absent:
                continue
            near = np.exp(-((row - 2) ** 2 + (column - 1 - number % 4) ** 2) / 4)
            other = target is not None and near > 0.6
            parts[row % pieces].append({
                "image_id": image["image_id"], "key": image["key"], "y": row * stride[0],
                "x": column * stride[1], "activation": 120 - 100 * near,
                "probability": None if classes is None else 0.9 - 0.8 * near,
                "predicted": (target + 1) % (classes or 1) if other else target,
            })  # fmt: skip
    written = [(IMAGES, occluded), *((POSITIONS, part) for part in parts[::-1])]
    if projected:
        seen = np.repeat(np.linspace(-1, 1, 23), 19 * 3).astype(np.float32)
        box = {"y0": 5, "x0": 13, "height": 23, "width": 19, "projection": seen}
        written.append((PROJECTIONS, [{**image, **box} for image in occluded]))
    if extra:
        doubled = [
            {**row, "feature": feature, "activation": 2 * row["activation"], "unoccluded": 241.0}
            for part in parts
            for row in part
            for feature in extra
        ]
        written.append((FEATURES, doubled))
    options = Occlusion.Options(layer=layer, features=extra, value=value)
    publish(run, name, written, "occlusion", options.model_dump(mode="json"), scan)


def invariance(
    run: Path,
    count: int = 5,
    classes: int | None = 3,
    layers: tuple[str, ...] = ("conv1", "conv2"),
    name: str = "invariance",
    scan: str = "scan",
) -> None:
    """Distances that grow with the amount, each image at its own rate."""
    amounts = {"vertical": (-4, 0, 4), "scale": (1, 1.4, 1.8), "rotation": (0, 90, 180, 270)}
    neutral = {"scale": 1}
    rows = [
        {
            **image,
            "target": None if classes is None else (image["label"] or 0),
            "transform": transform,
            "amount": float(amount),
            "layer": layer,
            "distance": rate * abs(amount - neutral.get(transform, 0)),
            "normalised": rate * abs(amount - neutral.get(transform, 0)) / 200,
            "probability": None if classes is None else 0.9 / (1 + number),
            "predicted": None if classes is None else 0,
        }
        for number, image in enumerate(images(run)[:count])
        for transform, all_ in amounts.items()
        for amount in all_
        for layer, rate in zip(layers, (number + 1.0, 0.1 * (number + 1)), strict=False)
    ]
    options = Invariance.Options().model_dump(mode="json")
    publish(run, name, [(INVARIANCE, rows)], "invariance", options, scan)


def correspondence(
    run: Path,
    count: int = 5,
    parts: tuple[str, ...] = ("left eye", "nose"),
    name: str = "correspondence",
    scan: str = "scan",
) -> None:
    """Two layers, and boxes of two parts with two random draws each."""
    layers = ("conv1", "conv2")
    rows = []
    for depth, layer in enumerate(layers):
        for number, part in enumerate((*parts, "random")):
            for random in (True,) if part == "random" else (False, True):
                mean = 0.05 + 0.01 * number + 0.1 * random - 0.02 * depth
                rows.append({
                    "layer": layer, "part": part, "random": random, "images": count,
                    "pairs": count * (count - 1) // 2, "mean": mean, "std": 0.0123,
                    "chance": 0.25,
                })  # fmt: skip
    boxes = []
    for number, image in enumerate(images(run)[:count]):
        for which, part in enumerate(parts):
            for draw in (None, 0, 1):
                y0, x0 = 3 + which * 8 + (draw or 0), 2 + number + (7 if draw is not None else 0)
                boxes.append({
                    **image, "part": part, "discriminative": which == 0, "draw": draw,
                    "y0": y0, "x0": x0, "y1": y0 + 6, "x1": x0 + 9, "area": 54 / 1024,
                })  # fmt: skip
    options = Correspondence.Options().model_dump(mode="json")
    written = [(CORRESPONDENCE, rows), (OCCLUDERS, boxes)]
    publish(run, name, written, "correspondence", options, scan)
