"""scan: the strongest images of every feature, its statistics, and what the network predicts.

Zeiler & Fergus (ECCV 2014), section 4.1 and Figure 2: the top activations of each feature over
all images. One pass over the images keeps scores, positions and exact sums. The analysis
`switches`, which follows by default, reads each winning image once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from zfscale.analyses.scan.copies import find_copies
from zfscale.analyses.scan.predictions import join, no_predictions, predict
from zfscale.analyses.scan.tables import FEATURES, IMAGES, WINNERS
from zfscale.analyses.shared.options import Names
from zfscale.analysis import Analysis, Context, Output, View
from zfscale.convnet.network import Network
from zfscale.convnet.observing.observe import observe
from zfscale.convnet.observing.statistics import FeatureStatistics
from zfscale.convnet.observing.topk import ImageIds, TopK, Winners, merge
from zfscale.records import (
    Columns,
    ImageRange,
    Layer,
    Reason,
    Status,
    Table,
    Task,
    concatenate,
    published_name,
)


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `scan` in a job file."""

    layers: Names = Field(
        default=None,
        description="Module names; left out, every convolution after its rectification.",
    )
    top_k: int = Field(default=9, ge=1, le=1000, description="Images kept for every feature.")


class Scan(Analysis[Options]):
    """Winners, statistics and predictions, in one pass over the images."""

    kind = "scan"
    Options = Options
    needs = ("index",)
    brings = ("switches",)
    scans_dataset = True
    tables = (IMAGES, FEATURES, WINNERS)

    def metadata(self, view: View) -> Mapping[str, Any]:
        """The layers, and the table that lists each image once. Raises UsageError for a layer that
        is not there.
        """
        layers = [asdict(layer) for layer in view.network.choose(self.options.layers)]
        return {"layers": layers, "images": published_name(IMAGES.name, self.kind, self.name)}

    def plan(self, view: View) -> Sequence[Task]:
        """One task a range; a range with images that an earlier one has, once more without them.

        Copies of one image must not count twice in the statistics. They show only when all
        ranges have been read, and they are rare: their tasks are done again.
        """
        ranges = view.ranges
        tasks = [self.task(images) for images in ranges]
        done = view.done
        if any(task.id not in done for task in tasks):
            return tasks
        accepted = (done[task.id]("outcomes", "id", "position", status=Status.OK) for task in tasks)
        copies = find_copies(accepted, sum(images.stop - images.start for images in ranges))
        return [
            self.task(images.without(copies[owner])) if owner in copies else task
            for owner, (task, images) in enumerate(zip(tasks, ranges, strict=True))
        ]

    def run(self, context: Context, _: Task) -> Output:
        """Scan the images of one task: its winners, sums and predictions.

        In these tables the features of all layers are numbered through.
        """
        layers = context.network.choose(self.options.layers)
        features = sum(layer.channels for layer in layers)
        top_k, statistics = TopK(features, self.options.top_k), FeatureStatistics(features)
        predictions = [no_predictions()]
        for batch in context.batches():
            image_ids = ImageIds.of(
                [image.id for image in batch.images], [image.label for image in batch.images]
            )
            observation = observe(
                context.network, layers, batch.pixels, image_ids, top_k.thresholds
            )
            for index in np.flatnonzero(~observation.finite):
                context.quarantine(batch.images[index], Reason.NON_FINITE)
            top_k.add(observation.thresholds, observation.candidates)
            statistics.add(
                observation.scores[observation.finite], image_ids.label[observation.finite]
            )
            predictions.append(predict(batch, image_ids, observation))
        return Output(
            {
                "winners": top_k.winners().rows(),
                "sums": statistics.rows(),
                "predictions": concatenate(predictions),
            }
        )

    def publish(self, view: View, tasks: Iterable[Task]) -> Iterator[tuple[Table, Columns]]:
        """Merge the tasks: features and winners layer by layer, and the images as they ended."""
        layers = view.network.choose(self.options.layers)
        features = sum(layer.channels for layer in layers)
        statistics, best = FeatureStatistics(features), Winners.empty(features)
        done = view.done
        for task in tasks:
            read = done[task.id]
            statistics.merge(read("sums"))
            best = merge([best, Winners.of(features, read("winners"))], self.options.top_k)
        ids = set(_ids(best.rows()))
        keys: dict[str, str] = {}
        for task in tasks:
            read = done[task.id]
            if isinstance(task.images, ImageRange):
                index = view.references(task.images)
                rows = join(index, read("outcomes"), read("predictions"))
                named = zip(rows["id"], rows["key"], rows["status"], strict=True)
                keys |= {i: key for i, key, status in named if status == Status.OK and i in ids}
                yield IMAGES, rows
        summary, start = statistics.summary(), 0
        for layer in layers:
            stop = start + layer.channels
            columns = {name: values[start:stop] for name, values in summary.items()}
            yield FEATURES, _named(layer.name, {"feature": np.arange(layer.channels)} | columns)
            yield WINNERS, _final(view.network, layer, best.part(start, stop), keys)
            start = stop


def _named(layer: str, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    length = len(next(iter(columns.values())))
    return {"layer": np.full(length, layer, dtype=object), **columns}


def _ids(rows: Columns) -> list[str]:
    """The ids of images from their halves."""
    return [f"{high:016x}{low:016x}" for high, low in zip(rows["high"], rows["low"], strict=True)]


def _final(network: Network, layer: Layer, best: Winners, keys: Mapping[str, str]) -> Columns:
    """Rows of `winners` for one layer, with the keys of the images and receptive fields."""
    rows = best.rows()
    ids = _ids(rows)
    del rows["high"], rows["low"]
    label = rows.pop("label")
    named = {
        "image_id": np.array(ids, dtype=object),
        "key": np.array([keys[id_] for id_ in ids], dtype=object),
        "label": np.ma.masked_array(label, label < 0),
    }
    return _named(layer.name, rows | named | _receptive_fields(network, layer, rows))


def _receptive_fields(network: Network, layer: Layer, rows: Columns) -> dict[str, NDArray[Any]]:
    """Boxes of the winning units in input pixels; masked where the geometry is not known."""
    if layer.field is None:
        unknown = np.ma.masked_all(len(rows["y"]), np.int64)
        return dict.fromkeys(("y0", "x0", "y1", "x1"), unknown)
    window = network.window(layer)
    y0, x0 = window.origin(rows["y"], rows["x"])
    boxes = {"y0": y0, "x0": x0, "y1": y0 + window.size[0], "x1": x0 + window.size[1]}
    return {name: np.ma.masked_array(values) for name, values in boxes.items()}
