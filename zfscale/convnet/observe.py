"""One batch through the network: what each feature made of each image.

Knows the network and the top-k; not where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.network import Layer, Network
from zfscale.convnet.topk import Identity, Winners, candidates, positions, row_maxima


@dataclass(frozen=True)
class Observation:
    """What one forward pass over n images showed.

    `finite` (n,) tells which images gave finite activations in every observed layer and finite
    logits. `scores` (n, C) are the maxima over the maps of all layers, side by side. `winners`
    are candidates for the top k of each layer, finite images only. `logits` is (n, classes),
    or None where the network does not end in one number a class.
    """

    finite: NDArray[np.bool_]
    scores: NDArray[np.float32]
    winners: Mapping[str, Winners]
    logits: NDArray[np.float32] | None


def observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    identity: Identity,
    best: Mapping[str, Winners],
    k: int,
) -> Observation:
    """Forward `pixels` (uint8 (B, 3, H, W)), of which the first n = len(identity) are images.

    An image that turns out not to be finite in a late layer may have displaced others in an
    earlier one, so the batch is observed again without it.
    """
    finite = np.ones(len(identity), bool)
    while True:
        observation = _observe(network, layers, pixels, identity, best, k, finite)
        if observation.finite.sum() == finite.sum():
            return observation
        finite = observation.finite


def _observe(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    identity: Identity,
    best: Mapping[str, Winners],
    k: int,
    accepted: NDArray[np.bool_],
) -> Observation:
    n = len(accepted)
    scores: dict[str, NDArray[np.float32]] = {}
    winners: dict[str, Winners] = {}

    def visit(name: str, activations: torch.Tensor) -> None:
        rows = row_maxima(activations[:n])
        maxima = rows.amax(2).float().cpu().numpy()
        scores[name] = maxima
        eligible = np.where(accepted[:, None] & np.isfinite(maxima), maxima, -np.inf)
        image, feature = np.nonzero(candidates(eligible, best[name], k))
        y, x = positions(activations, rows, image, feature)
        winners[name] = Winners.scatter(
            eligible.shape[1],
            feature,
            score=eligible[image, feature],
            high=identity.high[image],
            low=identity.low[image],
            y=y,
            x=x,
            label=identity.label[image],
        )

    output = network.forward(pixels, layers, visit)
    stacked = np.concatenate([scores[layer.name] for layer in layers], axis=1)
    finite = accepted & np.isfinite(stacked).all(1)
    logits = None
    if output.ndim == 2:
        logits = output[:n].float().cpu().numpy()
        finite &= np.isfinite(logits).all(1)
    return Observation(finite, stacked, winners, logits)
