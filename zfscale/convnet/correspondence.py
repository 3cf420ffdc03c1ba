"""Correspondence: does hiding a part change the features of different images in the same way?

Zeiler & Fergus (ECCV 2014), section 4.3: e_i = x_i - x~_i is the change of the feature vector x_i
of image i when a part of it is hidden, and the sum over all i != j of H(sign(e_i), sign(e_j)), with
H the Hamming distance, is small where the change is the same in all images. Signs are -1, 0 or 1.
Distances are counted in whole numbers, so nothing depends on the order of images.

An occluder that changes more features gives larger distances, whatever it hides. `chance` says
how large they would be for the same numbers of signs without any correspondence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.incremental.occlusion import colour
from zfscale.convnet.network import Network
from zfscale.records import Box, Layer

Signs = NDArray[np.uint64]
"""Signs of n vectors of D components, shape (n, 2, W): bits of what is > 0, bits of what is < 0.
The last of the W = ceil(D / 64) words is filled up with zeros."""

BLOCK_BYTES = 1 << 20
"""Bytes of signs that one vector is compared with at a time: they stay in a processor's cache."""


def signs(differences: torch.Tensor) -> Signs:
    """The signs of `differences`, shape (n, D), of any float type and on any device."""
    count, components = differences.shape
    packed = np.zeros((count, 2, 8 * words(components)), np.uint8)
    for half, bits in enumerate((differences > 0, differences < 0)):
        octets = np.packbits(bits.cpu().numpy(), axis=1)
        packed[:, half, : octets.shape[1]] = octets
    return packed.view(np.uint64)


def words(components: int) -> int:
    """W, the number of 64-bit words that hold one bit a component."""
    return -(-components // 64)


def changes(
    network: Network,
    layers: Sequence[Layer],
    pixels: torch.Tensor,
    boxes: Sequence[Sequence[Box]],
    value: tuple[int, int, int] | Literal["mean"] = "mean",
) -> tuple[list[list[list[Signs]]], NDArray[np.bool_]]:
    """The signs of what changes in the features of images when their boxes are covered in turn.

    `pixels` is uint8 (B, 3, H, W); `boxes` are those of its first n <= B images, covered with the
    RGB colour `value`. Returns for each image, each of its boxes and each layer the signs of
    x - x~, shape (2, W); and (n,) which images gave finite features throughout.

    An occluded image has the same row of the batch as the image had, so that a feature that the
    occluder cannot reach is computed in the same way, and its difference is exactly zero.
    """
    image = network.normalise(pixels)
    hidden = colour(network, value)[:, None, None]
    before, finite = _features(network, layers, image.clone())
    changed: list[list[list[Signs]]] = [[] for _ in boxes]
    for turn in range(max(map(len, boxes), default=0)):
        rows = [row for row, of_image in enumerate(boxes) if turn < len(of_image)]
        occluded = image.clone()
        for row in rows:
            y0, x0, y1, x1 = boxes[row][turn]
            occluded[row, :, y0:y1, x0:x1] = hidden
        after, after_finite = _features(network, layers, occluded)
        finite &= after_finite
        packed = [signs(x[rows] - y[rows]) for x, y in zip(before, after, strict=True)]
        for at, row in enumerate(rows):
            changed[row].append([of_layer[at] for of_layer in packed])
    return changed, finite[: len(boxes)]


def _features(
    network: Network, layers: Sequence[Layer], image: torch.Tensor
) -> tuple[list[torch.Tensor], NDArray[np.bool_]]:
    """The feature vectors (B, D) of each layer, and which rows are finite in all of them."""
    by_layer: dict[str, torch.Tensor] = {}

    def keep(name: str, activations: torch.Tensor) -> None:
        by_layer[name] = activations.flatten(1).float().clone()

    network.run(image, layers, keep)
    features = [by_layer[layer.name] for layer in layers]
    finite = torch.stack([each.isfinite().all(1) for each in features]).all(0)
    return features, finite.cpu().numpy()


@dataclass(frozen=True, slots=True)
class Distances:
    """Hamming distances of `pairs` pairs of vectors of D components. Adding puts pairs together.

    `total` is the sum over the pairs of the number of components that differ, `squares` the sum
    of its squares, and `shuffled` D times the sum of what it would be on average if the
    components of each vector were shuffled.
    """

    pairs: int = 0
    total: int = 0
    squares: int = 0
    shuffled: int = 0

    def __add__(self, other: Distances) -> Distances:
        return Distances(
            self.pairs + other.pairs,
            self.total + other.total,
            self.squares + other.squares,
            self.shuffled + other.shuffled,
        )

    def mean(self, components: int) -> float | None:
        """Mean distance as a fraction of the components, 0..1; None without pairs."""
        return self.total / (self.pairs * components) if self.pairs else None

    def chance(self, components: int) -> float | None:
        """Mean distance if the components of each vector were shuffled; None without pairs."""
        return self.shuffled / (self.pairs * components**2) if self.pairs else None

    def std(self, components: int) -> float | None:
        """Standard deviation (of the population) of these fractions; None without pairs."""
        if not self.pairs:
            return None
        # Whole numbers up to the last division: no digit is lost where the spread is small.
        variance = self.pairs * self.squares - self.total**2
        return math.sqrt(variance / (self.pairs * components) ** 2)


def distances(vectors: Signs, components: int, block_bytes: int = BLOCK_BYTES) -> Distances:
    """The distances between all n (n - 1) / 2 pairs of n sign vectors of D = `components`.

    Time grows with n squared, memory beyond `vectors` does not grow. Each vector is compared with
    `block_bytes` of others at a time.
    """
    # Two components differ where exactly one is > 0 or exactly one is < 0: an exclusive or of the
    # packed bits, the two halves put together, and the number of bits that are set.
    block = max(1, block_bytes // max(1, vectors[:1].nbytes))
    total = squares = 0
    for at, one in enumerate(vectors):
        for start in range(at + 1, len(vectors), block):
            differing = one ^ vectors[start : start + block]
            counts = np.bitwise_count(differing[:, 0] | differing[:, 1]).sum(1, dtype=np.int64)
            total += int(counts.sum())
            squares += sum(count * count for count in counts.tolist())
    pairs = len(vectors) * (len(vectors) - 1) // 2
    return Distances(pairs, total, squares, pairs * components**2 - _alike(vectors, components))


def _alike(vectors: Signs, components: int) -> int:
    """Sum over the pairs of P P' + N N' + Z Z', with P, N and Z the numbers of components that
    are 1, -1 and 0: D times how many would be alike, on average, if they were shuffled.
    """
    # The sum of products over all pairs is half of (square of the sum - sum of the squares).
    counts = np.bitwise_count(vectors).sum(2, dtype=np.int64).tolist()
    kinds = [(plus, minus, components - plus - minus) for plus, minus in counts]
    twice = 0
    for numbers in zip(*kinds, strict=True):
        twice += sum(numbers) ** 2 - sum(number * number for number in numbers)
    return twice // 2
