"""What the network takes each image for, and how that joins the way the image ended."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.analysis import Batch
from zfscale.convnet.observing.observe import Observation
from zfscale.convnet.observing.topk import ImageIds
from zfscale.records import Columns


def no_predictions() -> dict[str, NDArray[Any]]:
    """Predictions of no images."""
    return {
        "index": np.empty(0, np.int64),
        "predicted": np.ma.masked_all(0, np.int64),
        "probability": np.ma.masked_all(0, np.float32),
        "true_class_rank": np.ma.masked_all(0, np.int64),
    }


def predict(batch: Batch, image_ids: ImageIds, observation: Observation) -> dict[str, NDArray[Any]]:
    """Most probable class, its probability, and how many classes come before the true one.

    Of equally probable classes the one with the smaller index comes first, as with argmax.
    """
    good = observation.finite
    index = np.array([image.index for image in batch.images], np.int64)[good]
    if observation.logits is None:
        none = no_predictions()
        unknown = {name: np.ma.masked_all(len(index), none[name].dtype) for name in none}
        return unknown | {"index": index}
    logits, label = observation.logits[good], image_ids.label[good]
    predicted = logits.argmax(1)
    weights = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    probability = (1 / weights.sum(1)).astype(np.float32)
    has_class = (label >= 0) & (label < logits.shape[1])
    true_class = np.where(has_class, label, 0)[:, None]
    true_logit = np.take_along_axis(logits, true_class, axis=1)
    earlier = np.arange(logits.shape[1]) < true_class
    rank = ((logits > true_logit) | ((logits == true_logit) & earlier)).sum(1)
    return {
        "index": index,
        "predicted": np.ma.masked_array(predicted),
        "probability": np.ma.masked_array(probability),
        "true_class_rank": np.ma.masked_array(rank, ~has_class),
    }


def join(index: Columns, outcomes: Columns, predictions: Columns) -> Columns:
    """Rows of `images` for a range: the index, how every image ended, and its prediction if any."""
    rows = {name: values for name, values in index.items() if name not in ("position", "reason")}
    order = {int(position): row for row, position in enumerate(outcomes["position"])}
    ended = np.array([order[int(position)] for position in index["position"]], np.int64)
    rows |= {name: values[ended] for name, values in outcomes.items() if name != "position"}
    places = {int(position): row for row, position in enumerate(predictions["index"])}
    place = np.array([places.get(int(position), -1) for position in index["position"]], np.int64)
    for name in ("predicted", "probability", "true_class_rank"):
        values = np.ma.masked_all(len(place), predictions[name].dtype)
        values[place >= 0] = predictions[name][place[place >= 0]]
        rows[name] = values
    return rows
