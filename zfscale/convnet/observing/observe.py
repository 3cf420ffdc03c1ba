"""One batch through the network: what each feature made of each image.

Knows the network and the top-k; not where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.network import Network
from zfscale.convnet.observing.topk import Identity, candidates, positions, raised, row_maxima
from zfscale.records import Columns, Layer


@dataclass(frozen=True)
class Observation:
    """What one forward pass over n images showed.

    `finite` (n,) tells which images gave finite activations in every observed layer and finite
    logits. `scores` (n, C) are the maxima over the maps of all layers, side by side. `bar` (k, C)
    are the k best scores so far, and `candidates` those who may be among the k best, as
    `topk.Leaders` takes them; both of finite images only. `logits` is (n, classes), or None where
    the network does not end in one number a class.
    """

    finite: NDArray[np.bool_]
    scores: NDArray[np.float32]
    bar: NDArray[np.float32]
    candidates: Columns
    logits: NDArray[np.float32] | None


def observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    identity: Identity,
    bar: NDArray[np.float32],
) -> Observation:
    """Forward `pixels` (uint8 (B, 3, H, W)), of which the first n = len(identity) are images.

    `bar` (k, C) holds the k best scores so far, of all layers side by side.
    An image that turns out not to be finite in a late layer may have displaced others in an
    earlier one, so the batch is observed again without it.
    """
    finite = np.ones(len(identity), bool)
    while True:
        observation = _observe(network, layers, pixels, identity, bar, finite)
        if observation.finite.sum() == finite.sum():
            return observation
        finite = observation.finite


def _observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    identity: Identity,
    bar: NDArray[np.float32],
    accepted: NDArray[np.bool_],
) -> Observation:
    n = len(accepted)
    ends = np.cumsum([layer.channels for layer in layers])
    place = {
        layer.name: slice(int(end) - layer.channels, int(end))
        for layer, end in zip(layers, ends, strict=True)
    }
    scores = np.empty((n, ends[-1]), np.float32)
    bar = bar.copy()
    found: list[tuple[NDArray[np.int64], ...]] = []

    def visit(name: str, activations: torch.Tensor) -> None:
        rows = row_maxima(activations[:n])
        maxima = rows.amax(2).float().cpu().numpy()
        mine = place[name]
        scores[:, mine] = maxima
        eligible = np.where(accepted[:, None] & np.isfinite(maxima), maxima, -np.inf)
        bar[:, mine] = raised(bar[:, mine], eligible)
        image, feature = np.nonzero(candidates(eligible, bar[:, mine]))
        y, x = positions(activations, rows, image, feature)
        found.append((image, feature + mine.start, y, x))

    output = network.forward(pixels, layers, visit)
    finite = accepted & np.isfinite(scores).all(1)
    logits = None
    if output.ndim == 2:
        logits = output[:n].float().cpu().numpy()
        finite &= np.isfinite(logits).all(1)
    image, feature, y, x = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows = {
        "feature": feature,
        "score": scores[image, feature],
        "high": identity.high[image],
        "low": identity.low[image],
        "y": y,
        "x": x,
        "label": identity.label[image],
    }
    return Observation(finite, scores, bar, rows, logits)
