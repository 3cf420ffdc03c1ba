"""scan: the strongest images of every feature, its statistics, and what the network predicts.

Zeiler & Fergus (ECCV 2014), section 4.1 and Figure 2: the top activations of each feature over
all images. One pass over the images keeps scores, positions and exact sums; a second one
(`_switches.py`) reads each winning image once more and stores the pooling switches that its
deconvolution needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from zfscale.analyses import Context, Output, Pass, View
from zfscale.analyses import switches as _switches
from zfscale.analyses.scan.predictions import join, no_predictions, predict
from zfscale.analyses.scan.tables import FEATURES, IMAGES, WINNERS
from zfscale.analyses.shared.options import Names
from zfscale.convnet.network import Network
from zfscale.convnet.observing.observe import observe
from zfscale.convnet.observing.statistics import FeatureStatistics
from zfscale.convnet.observing.topk import ImageIds, TopK, Winners, merge
from zfscale.records import Columns, Layer, Reason, Status, Table, Task


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `scan` in a job file."""

    layers: Names = Field(
        default=None,
        description="Module names; left out, every convolution after its rectification.",
    )
    top_k: int = Field(default=9, ge=1, le=1000, description="Images kept for every feature.")


def passes(options: Options) -> tuple[Pass, ...]:
    """The first pass over all images, then the switches of the winners."""
    scan = Scan(options)
    tables = (IMAGES, FEATURES, WINNERS)
    statistics = Pass("scan", scan.plan, scan.run, scan.publish, tables, over_collection=True)
    return (statistics, _switches.revisit(options.layers))


class Scan:
    """The first pass under given options; holds nothing else."""

    def __init__(self, options: Options) -> None:
        self.k = options.top_k
        self.names = options.layers

    def plan(self, view: View) -> Sequence[Task]:
        """One task a range; a range with images that an earlier one has, once more without them.

        Copies of one image must not count twice in the statistics. They show only when all
        ranges have been read, and they are rare: their tasks are done again.
        """
        view.network.choose(self.names)  # an unknown layer stops the job before any work
        tasks = [Task("scan", images) for images in view.ranges]
        done = view.done("scan")
        if any(task.id not in done for task in tasks):
            return tasks
        copies = _copies(done[task.id]("outcomes") for task in tasks)
        return [
            Task("scan", images.without(places)) if places else task
            for task, images, places in zip(tasks, view.ranges, copies, strict=True)
        ]

    def run(self, context: Context, _: Task) -> Output:
        """Scan the images of one task: its winners, sums and predictions.

        In these tables the features of all layers are numbered through.
        """
        layers = context.network.choose(self.names)
        features = sum(layer.channels for layer in layers)
        top_k, statistics = TopK(features, self.k), FeatureStatistics(features)
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
                "predictions": _stack(predictions),
            }
        )

    def publish(self, view: View, tasks: Sequence[Task]) -> Iterator[tuple[Table, Columns]]:
        """Merge the tasks: images as they come, then features and winners layer by layer."""
        layers = view.network.choose(self.names)
        done = view.done("scan")
        features = sum(layer.channels for layer in layers)
        statistics, best = FeatureStatistics(features), Winners.empty(features)
        for task in tasks:
            read = done[task.id]
            statistics.merge(read("sums"))
            best = merge([best, Winners.of(features, read("winners"))], self.k)
            yield IMAGES, join(read("outcomes"), read("predictions"))
        summary, start = statistics.summary(), 0
        for layer in layers:
            stop = start + layer.channels
            columns = {name: values[start:stop] for name, values in summary.items()}
            yield FEATURES, _named(layer.name, {"feature": np.arange(layer.channels)} | columns)
            yield WINNERS, _final(view, layer, best.part(start, stop))
            start = stop


def _copies(outcomes: Iterable[Columns]) -> list[tuple[int, ...]]:
    """For each task the positions of images that an earlier task has: 24 bytes an image."""
    ids, places, owners = [], [], []
    for owner, rows in enumerate(outcomes):
        ok = rows["status"] == Status.OK
        image_ids = ImageIds.of(rows["id"][ok].tolist(), [None] * int(ok.sum()))
        ids.append(np.stack([image_ids.high, image_ids.low], axis=1))
        places.append(np.asarray(rows["index"][ok]))
        owners.append(np.full(len(image_ids), owner))
    every, place, owner_of = (np.concatenate(parts) for parts in (ids, places, owners))
    order = np.lexsort((owner_of, every[:, 1], every[:, 0]))
    again = order[1:][(every[order[1:]] == every[order[:-1]]).all(1)]
    copies: list[list[int]] = [[] for _ in ids]
    for at in again.tolist():
        copies[owner_of[at]].append(int(place[at]))
    return [tuple(sorted(positions)) for positions in copies]


def _named(layer: str, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    length = len(next(iter(columns.values())))
    return {"layer": np.full(length, layer, dtype=object), **columns}


def _stack(parts: Sequence[Columns]) -> Columns:
    return {name: np.ma.concatenate([part[name] for part in parts]) for name in parts[0]}


def _final(view: View, layer: Layer, best: Winners) -> Columns:
    """Rows of `winners` for one layer, with the names of the images and receptive fields."""
    rows = best.rows()
    halves = zip(rows.pop("high"), rows.pop("low"), strict=True)
    ids = [f"{high:016x}{low:016x}" for high, low in halves]
    keys = {image.id: image.key for image in view.images(sorted(set(ids)))}
    label = rows.pop("label")
    named = {
        "image_id": np.array(ids, dtype=object),
        "key": np.array([keys[id_] for id_ in ids], dtype=object),
        "label": np.ma.masked_array(label, label < 0),
    }
    return _named(layer.name, rows | named | _receptive_fields(view.network, layer, rows))


def _receptive_fields(network: Network, layer: Layer, rows: Columns) -> dict[str, NDArray[Any]]:
    """Boxes of the winning units in input pixels; masked where the geometry is not known."""
    if layer.field is None:
        unknown = np.ma.masked_all(len(rows["y"]), np.int64)
        return dict.fromkeys(("y0", "x0", "y1", "x1"), unknown)
    window = network.window(layer)
    y0, x0 = window.origin(rows["y"], rows["x"])
    boxes = {"y0": y0, "x0": x0, "y1": y0 + window.size[0], "x1": x0 + window.size[1]}
    return {name: np.ma.masked_array(values) for name, values in boxes.items()}
