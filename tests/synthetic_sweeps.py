"""Made-up tables of the sweeps (occlusion, invariance, correspondence) for a synthetic run.

Stored as a job stores them, so that the gallery reads them as it reads those of a job. Tests load
this with `runpy`, as test files are no packages.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zfscale.analyses.correspondence.analysis import CORRESPONDENCE
from zfscale.analyses.correspondence.occluders import OCCLUDERS
from zfscale.analyses.invariance.analysis import INVARIANCE
from zfscale.analyses.occlusion.tables import FEATURES, IMAGES, POSITIONS, PROJECTIONS
from zfscale.records import Table
from zfscale.runs import record as runs
from zfscale.runs import tables
from zfscale.runs.columns import from_arrow
from zfscale.runs.schema import arrow_type
from zfscale.storage import open_storage


def publish(run: Path, table: Table, parts: list[list[dict[str, Any]]]) -> None:
    """Add rows to a run as a table, each part of them a file, and say so in run.json."""
    storage = open_storage(str(run))
    record = runs.read(storage)
    files = dict(record.published)
    for number, rows in enumerate(parts):
        columns = {}
        for column in table.columns:
            values = pa.array([row[column.name] for row in rows], arrow_type(column))
            columns[column.name] = from_arrow(values, column.nullable)
        part = f"part-{number:05d}"
        files |= {f.path: f for f in tables.write(storage, table, columns, record.run_id, part)}
    storage.publish("run.json", runs.encode(replace(record, published=files)))


def images(run: Path) -> list[dict[str, Any]]:
    """The accepted images of a run: id, key, label."""
    rows = tables.read(open_storage(str(run)), "images", ["id", "key", "label", "status"])
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
    further: tuple[int, ...] = (),
    projected: bool = True,
) -> None:
    """Maps of the first images: a pit about one place in each. `pieces` cuts each image's rows
    into files that come in the opposite order; `classes` None: the network has none; `further`
    features have the same map, doubled; `projected` units are brighter the lower a pixel is."""
    occluder, stride = (8, 10), (4, 5)
    facts: list[dict[str, Any]] = []
    parts: list[list[dict[str, Any]]] = [[] for _ in range(pieces)]
    for number, image in enumerate(images(run)[:count]):
        target = None if classes is None else (image["label"] or 0)
        facts.append({
            **image, "target": target, "predicted": target,
            "probability": None if classes is None else 0.9, "layer": layer, "feature": number % 3,
            "total": 120.5, "y": 1, "x": 2, "y0": 5, "x0": 13, "y1": 28, "x1": 36,
            "height": occluder[0], "width": occluder[1], "stride_y": stride[0],
            "stride_x": stride[1], "rows": grid[0], "columns": grid[1], "method": "incremental",
        })  # fmt: skip
        for row, column in np.ndindex(*grid):
            near = np.exp(-((row - 2) ** 2 + (column - 1 - number % 4) ** 2) / 4)
            other = target is not None and near > 0.6
            parts[row % pieces].append({
                "image_id": image["image_id"], "key": image["key"], "y": row * stride[0],
                "x": column * stride[1], "activation": 120 - 100 * near,
                "probability": None if classes is None else 0.9 - 0.8 * near,
                "predicted": (target + 1) % (classes or 1) if other else target,
            })  # fmt: skip
    if projected:
        seen = np.repeat(np.linspace(-1, 1, 23), 19 * 3).astype(np.float32)
        box = {"y0": 5, "x0": 13, "height": 23, "width": 19, "projection": seen}
        publish(run, PROJECTIONS, [[{**fact, **box} for fact in facts]])
    publish(run, IMAGES, [facts])
    publish(run, POSITIONS, parts[::-1])
    if further:
        doubled = [
            {**row, "feature": feature, "activation": 2 * row["activation"], "unoccluded": 241.0}
            for part in parts
            for row in part
            for feature in further
        ]
        publish(run, FEATURES, [doubled])


def invariance(
    run: Path, count: int = 5, classes: int | None = 3, layers: tuple[str, ...] = ("conv1", "conv2")
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
    publish(run, INVARIANCE, [rows])


def correspondence(
    run: Path, count: int = 5, parts: tuple[str, ...] = ("left eye", "nose")
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
    publish(run, CORRESPONDENCE, [rows])
    publish(run, OCCLUDERS, [boxes])
