"""One batch through the network: the maxima of all features, and candidates for the top k.

Knows the network and the top-k; not where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.network import Network
from zfscale.convnet.observing.topk import (
    ImageIds,
    candidates,
    positions,
    row_maxima,
    update_thresholds,
)
from zfscale.records import Columns, Layer


@dataclass(frozen=True)
class Observation:
    """The results of one forward pass over n images.

    `finite` (n,) tells which images gave finite activations in every observed layer and finite
    logits. `scores` (n, C) are the maxima over the maps of all layers, side by side. `thresholds`
    (k, C) are the k best scores up to and with these images, and `candidates` the images that may
    be among the k best, as `TopK.add` takes both; both of finite images only. `logits` is
    (n, classes), or None where the network does not end in one number a class.
    """

    finite: NDArray[np.bool_]
    scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    candidates: Columns
    logits: NDArray[np.float32] | None


def observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    image_ids: ImageIds,
    thresholds: NDArray[np.float32],
) -> Observation:
    """Forward `pixels` (uint8 (B, 3, H, W)), of which the first n = len(image_ids) are images.

    `thresholds` (k, C) holds the k best scores so far, of all layers side by side.
    An image that turns out not to be finite in a late layer may have displaced others in an
    earlier one, so the batch is observed again without it.
    """
    finite = np.ones(len(image_ids), bool)
    while True:
        observation = _observe(network, layers, pixels, image_ids, thresholds, finite)
        if observation.finite.sum() == finite.sum():
            return observation
        finite = observation.finite


def _observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    image_ids: ImageIds,
    thresholds: NDArray[np.float32],
    accepted: NDArray[np.bool_],
) -> Observation:
    n = len(accepted)
    ends = np.cumsum([layer.channels for layer in layers])
    place = {
        layer.name: slice(int(end) - layer.channels, int(end))
        for layer, end in zip(layers, ends, strict=True)
    }
    scores = np.empty((n, ends[-1]), np.float32)
    thresholds = thresholds.copy()
    candidate_parts: list[tuple[NDArray[np.int64], ...]] = []

    # A layer is reduced to its maxima the moment it exists and is not kept. Positions are looked up
    # only for the few images that may be among the k best so far.
    def visit(name: str, activations: torch.Tensor) -> None:
        rows = row_maxima(activations[:n])
        maxima = rows.amax(2).float().cpu().numpy()
        own = place[name]
        scores[:, own] = maxima
        eligible = np.where(accepted[:, None] & np.isfinite(maxima), maxima, -np.inf)
        thresholds[:, own] = update_thresholds(thresholds[:, own], eligible)
        image, feature = np.nonzero(candidates(eligible, thresholds[:, own]))
        y, x = positions(activations, rows, image, feature)
        candidate_parts.append((image, feature + own.start, y, x))

    output = network.forward(pixels, layers, visit)
    finite = accepted & np.isfinite(scores).all(1)
    logits = None
    if output.ndim == 2:
        logits = output[:n].float().cpu().numpy()
        finite &= np.isfinite(logits).all(1)
    image, feature, y, x = (np.concatenate(parts) for parts in zip(*candidate_parts, strict=True))
    rows = {
        "feature": feature,
        "score": scores[image, feature],
        "high": image_ids.high[image],
        "low": image_ids.low[image],
        "y": y,
        "x": x,
        "label": image_ids.label[image],
    }
    return Observation(finite, scores, thresholds, rows, logits)
