"""How features and prediction of some images change while the images are transformed.

Zeiler & Fergus (ECCV 2014), section 4.1 and Figure 5: the Euclidean distance between the feature
vectors of an image and of its transformed versions, and the probability of its true label. Knows
the network and the transforms; not where images come from or where results go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.network import Network
from zfscale.convnet.transforms import TRANSFORMS
from zfscale.records import Layer

Step = tuple[str, float]
"""Name of a transform and its amount."""


@dataclass(frozen=True)
class Responses:
    """What S steps did to n images in L layers.

    A feature vector is all that a layer gives, flattened. `norm` (n, L) are the Euclidean norms of
    those of the images as they are, `distance` (n, S, L) how far from these the transformed ones
    lie. `target` (n,) is the class that is reported on, `probability` (n, S) what the softmax gives
    it, `predicted` (n, S) the most probable class; -1, 0 and -1 where the network has no logits.
    `finite` (n,) tells for which images all of this is finite.
    """

    norm: NDArray[np.float64]
    distance: NDArray[np.float64]
    target: NDArray[np.int64]
    probability: NDArray[np.float32]
    predicted: NDArray[np.int64]
    finite: NDArray[np.bool_]

    @classmethod
    def none(cls, steps: int, layers: int) -> Responses:
        """Of no images."""
        number = np.zeros((0, steps), np.int64)
        return cls(
            np.zeros((0, layers)),
            np.zeros((0, steps, layers)),
            np.zeros(0, np.int64),
            number.astype(np.float32),
            number,
            np.zeros(0, bool),
        )


def respond(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    labels: NDArray[np.int64],
    steps: Sequence[Step],
) -> Responses:
    """Transform the first n = len(labels) > 0 images of `pixels`, uint8 (B, 3, H, W).

    `labels` (n,) are classes, -1 where unknown. The target class is the label; where
    there is none, or the network has no such class, the one predicted for the image as it is.
    """
    original = _Original(network, layers, pixels, len(labels))
    has_class = (labels >= 0) & (labels < (network.classes or 0))
    target = np.where(has_class, labels, original.predicted)
    room = original.room
    parts = [
        original.compare(steps[start : start + room], target)
        for start in range(0, len(steps), room)
    ]
    distance, probability, predicted = (
        np.concatenate(part, axis=1) for part in zip(*parts, strict=True)
    )
    finite = np.isfinite(original.norm).all(1) & np.isfinite(distance).all((1, 2))
    finite &= np.isfinite(probability).all(1)
    return Responses(original.norm, distance, target, probability, predicted, finite)


class _Original:
    """n images as they are, ready to be compared with transformed versions of themselves.

    The network always sees exactly B rows: the n images in one version after the other, as many
    as there is `room` for, then zeros. The features of the originals are kept for every row: what
    a network computes may depend on the row in its last bits, and the transform that changes
    nothing must give a distance of 0.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], pixels: torch.Tensor, n: int
    ) -> None:
        self._network, self._layers = network, layers
        self._image = network.normalise(pixels[:n])
        self._rows = len(pixels)
        self.room = len(pixels) // n
        self._features: dict[str, torch.Tensor] = {}

        def keep(name: str, activations: torch.Tensor) -> None:
            self._features[name] = activations[: n * self.room].clone()

        logits = network.run(self._side_by_side([self._image] * self.room), layers, keep)
        self.predicted = np.full(n, -1)
        if network.classes is not None:
            self.predicted = _strongest(logits[:n])
        norms = [_lengths(self._features[layer.name][:n]) for layer in layers]
        self.norm = np.stack(norms, axis=1)

    def compare(
        self, steps: Sequence[Step], target: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
        """`distance`, `probability` and `predicted` of at most `room` steps, as in Responses."""
        n, s = len(target), len(steps)
        versions = [TRANSFORMS[name].apply(self._image, amount) for name, amount in steps]
        distances: dict[str, NDArray[np.float64]] = {}

        def measure(name: str, activations: torch.Tensor) -> None:
            pairs = zip(activations[: n * s], self._features[name][: n * s], strict=True)
            distances[name] = _lengths(moved - original for moved, original in pairs)

        logits = self._network.run(self._side_by_side(versions), self._layers, measure)
        distance = np.stack([distances[layer.name] for layer in self._layers], axis=1)
        probability, predicted = np.zeros(n * s, np.float32), np.full(n * s, -1)
        if self._network.classes is not None:
            logits = logits[: n * s]
            predicted = _strongest(logits)
            targets = torch.from_numpy(np.tile(target, s)).to(logits.device)
            softmax = logits.double().softmax(1)
            probability = softmax.gather(1, targets[:, None])[:, 0].float().cpu().numpy()
        return (
            distance.reshape(s, n, -1).swapaxes(0, 1),
            probability.reshape(s, n).T,
            predicted.reshape(s, n).T,
        )

    def _side_by_side(self, versions: Sequence[torch.Tensor]) -> torch.Tensor:
        """A batch of B rows, which the network may write over: the versions, then zeros."""
        shape = (self._rows, *self._image.shape[1:])
        rows = self._image.new_zeros(shape).to(memory_format=torch.channels_last)
        for start, version in enumerate(versions):
            rows[start * len(version) : (start + 1) * len(version)] = version
        return rows


def _lengths(vectors: Iterable[torch.Tensor]) -> NDArray[np.float64]:
    """Euclidean norms, accumulated in float64; one vector after the other, to save memory."""
    norms = [torch.linalg.vector_norm(vector, dtype=torch.float64) for vector in vectors]
    lengths: NDArray[np.float64] = torch.stack(norms).cpu().numpy()
    return lengths


def _strongest(logits: torch.Tensor) -> NDArray[np.int64]:
    """The most probable class of every row, the first of equal ones."""
    predicted: NDArray[np.int64] = logits.float().cpu().numpy().argmax(1)
    return predicted
