"""Occlusion sensitivity: what a network makes of an image while an occluder moves over it.

Zeiler & Fergus (ECCV 2014), section 4.2 and Figure 7: for every position of the occluder the total
activation of a feature map, the probability of a class, and the most probable class. Computed
incrementally where the network can be followed operation by operation, else by running it on
every occluded image. Both give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.incremental.inference import Grid, Incremental, Range, Sweep
from zfscale.convnet.incremental.spans import Change, Spans
from zfscale.convnet.network import Network
from zfscale.errors import UnsupportedOperation
from zfscale.records import Layer

LARGEST_BATCH = 64
"""Occluded images in a batch at most; larger ones take no less time an image."""


def grid(image: Range, size: Range, stride: Range) -> Grid:
    """Positions of an occluder of `size` on an image of size `image`, all (height, width).

    The first one lies at the top left corner; then one every `stride` pixels, until the last row
    and column are reached, or the next position would lie outside the image. What hangs over the
    border is cut off.
    """
    rows, columns = (
        tuple((start, min(start + s, i)) for start in range(0, max(i - s, 0) + d, d) if start < i)
        for i, s, d in zip(image, size, stride, strict=True)
    )
    return Grid(rows, columns)


def colour(network: Network, value: tuple[int, int, int] | Literal["mean"]) -> torch.Tensor:
    """An RGB colour in 0..255, or the mean one, as the network sees it: (3,)."""
    if value == "mean":
        return torch.zeros(3, device=network.device)
    return network.normalise(torch.tensor(value, dtype=torch.uint8).view(1, 3, 1, 1)).flatten()


class Baseline(NamedTuple):
    """What the network gives for an image without an occluder: `maps` (C, h, w) of the layer, and
    `logits` (classes,) or None.
    """

    maps: torch.Tensor
    logits: torch.Tensor | None

    @property
    def finite(self) -> bool:
        """Whether all of it is finite."""
        outputs = [self.maps] if self.logits is None else [self.maps, self.logits]
        return all(bool(values.isfinite().all()) for values in outputs)

    def totals(self, features: Sequence[int]) -> NDArray[np.float64]:
        """The sums over the maps of some features: (F,)."""
        sums = self.maps[list(features)].sum((1, 2), dtype=torch.float64)
        return np.asarray(sums.cpu().numpy())

    @property
    def strongest(self) -> tuple[int, int, int]:
        """The feature with the largest activation of all, and where it is: (feature, y, x)."""
        height, width = self.maps.shape[1:]
        place = int(self.maps.flatten().argmax())
        return place // (height * width), place // width % height, place % width


class Block(NamedTuple):
    """What the network gives under the occluders of a block of the grid.

    `totals` (T_y, T_x, F) float64 are sums over the maps of F features; `logits` are
    (T_y, T_x, classes), or None.
    """

    rows: Range
    columns: Range
    totals: torch.Tensor
    logits: torch.Tensor | None


class Sensitivity(NamedTuple):
    """What the network gives under the occluders of R rows and all X columns of a grid, for F
    features.

    `activation` (R, X, F) float64 are sums over the feature maps; `probability` (R, X) float32 is
    that of a class (softmax) and `predicted` (R, X) int64 the most probable one, or None.
    """

    activation: NDArray[np.float64]
    probability: NDArray[np.float32] | None
    predicted: NDArray[np.int64] | None

    @property
    def finite(self) -> bool:
        """Whether all of it is finite."""
        chances = True if self.probability is None else np.isfinite(self.probability).all()
        return bool(np.isfinite(self.activation).all() and chances)


class Occluder(Protocol):
    """A network and a grid of occluders of one colour; `method` names how it computes."""

    method: str
    places: Grid

    def set_image(self, image: torch.Tensor) -> Baseline:
        """Run on a normalised image (1, 3, H, W) without an occluder; `blocks` then covers it."""

    def blocks(self, features: Sequence[int], rows: Range) -> Iterator[Block]:
        """What the network gives under the occluders of some rows of the grid, block by block."""


def occlusion_sensitivity(
    occluder: Occluder, features: Sequence[int], target: int, rows: Range
) -> Sensitivity:
    """What the network makes of the image that `occluder` was given last, under the occluders of
    some rows of the grid.

    `target` is the class whose probability is reported; it is not used without logits.
    """
    shape = rows[1] - rows[0], len(occluder.places.columns)
    activation = np.empty((*shape, len(features)))
    probability, predicted = np.empty(shape, np.float32), np.empty(shape, np.int64)
    classified = False
    for block in occluder.blocks(features, rows):
        at = slice(block.rows[0] - rows[0], block.rows[1] - rows[0]), slice(*block.columns)
        activation[at] = block.totals.cpu().numpy()
        if block.logits is not None:
            classified = True
            chances = block.logits.double().softmax(2)[:, :, target]
            probability[at] = chances.float().cpu().numpy()
            predicted[at] = block.logits.argmax(2).cpu().numpy()
    if not classified:
        return Sensitivity(activation, None, None)
    return Sensitivity(activation, probability, predicted)


def make_occluder(
    network: Network, layer: Layer, places: Grid, value: torch.Tensor, classify: bool, memory: int
) -> tuple[Occluder, str | None]:
    """An IncrementalOccluder and None; or, for a network that it cannot follow, a FullOccluder and
    the reason.

    `value` (3,) is the colour in the normalised input. Without `classify` no logits are computed.
    `memory` is what one block may take in bytes, approximately.
    """
    try:
        return IncrementalOccluder(network, layer, places, value, classify, memory), None
    except UnsupportedOperation as error:
        return FullOccluder(network, layer, places, value, classify, memory), str(error)


class IncrementalOccluder:
    """Computes only what each occluder changes.

    Raises UnsupportedOperation for a network that it cannot follow operation by operation.
    """

    method = "incremental"

    def __init__(
        self,
        network: Network,
        layer: Layer,
        places: Grid,
        value: torch.Tensor,
        classify: bool,
        memory: int,
    ) -> None:
        graph = network.traced
        self._layer = str(layer.node)
        self._logits = graph.output if classify and network.classes is not None else None
        targets = [self._layer] if self._logits is None else [self._layer, self._logits]
        self._inference = Incremental(network, targets)
        self._sweep = Sweep(self._inference, places, memory)
        self.places, self._value = places, value.to(network.device)
        self._activations: dict[str, torch.Tensor] = {}

    def set_image(self, image: torch.Tensor) -> Baseline:
        """See Occluder."""
        self._activations = self._inference.remember(image)
        logits = None if self._logits is None else self._activations[self._logits].flatten()
        return Baseline(self._activations[self._layer].permute(2, 0, 1), logits)

    def blocks(self, features: Sequence[int], rows: Range) -> Iterator[Block]:
        """See Occluder."""
        chosen = torch.tensor(features, device=self._value.device)
        before = self._activations[self._layer][:, :, chosen].sum((0, 1), dtype=torch.float64)
        for block_rows in _split(rows, self._sweep.side):
            for block_columns in _split((0, len(self.places.columns)), self._sweep.side):
                changes = self._sweep.run(self._activations, self._value, block_rows, block_columns)
                totals = before + _totals(changes[self._layer], chosen)
                logits = None
                if self._logits is not None:
                    logits = (
                        self._activations[self._logits].flatten() + changes[self._logits].values
                    )
                yield Block(block_rows, block_columns, totals, logits)


class FullOccluder:
    """Runs the network on every occluded image, in batches."""

    method = "full"

    def __init__(
        self,
        network: Network,
        layer: Layer,
        places: Grid,
        value: torch.Tensor,
        classify: bool,
        memory: int,
    ) -> None:
        self._network, self._layer, self.places = network, layer, places
        self._value = value.to(network.device)
        self._classify = classify and network.classes is not None
        height, width = network.preprocessing.crop
        # VGG16 holds 128 maps of its input's size at a time; few networks hold more.
        self._batch = max(1, min(LARGEST_BATCH, memory // (4 * 128 * height * width)))
        self._image = torch.empty(0)

    def set_image(self, image: torch.Tensor) -> Baseline:
        """See Occluder."""
        self._image = image.clone()
        maps, logits = self._run(image)
        return Baseline(maps[0], None if logits is None else logits[0])

    def blocks(self, features: Sequence[int], rows: Range) -> Iterator[Block]:
        """See Occluder."""
        across = min(self._batch, len(self.places.columns))
        for block_rows in _split(rows, max(1, self._batch // across)):
            for block_columns in _split((0, len(self.places.columns)), across):
                count = block_rows[1] - block_rows[0], block_columns[1] - block_columns[0]
                maps, logits = self._run(self._occluded(block_rows, block_columns))
                totals = maps[:, list(features)].sum((2, 3), dtype=torch.float64)
                logits = None if logits is None else logits.view(*count, -1)
                yield Block(block_rows, block_columns, totals.view(*count, -1), logits)

    def _occluded(self, rows: Range, columns: Range) -> torch.Tensor:
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        images = self._image.repeat(height * width, 1, 1, 1)
        images = images.contiguous(memory_format=torch.channels_last)
        for y, (top, bottom) in enumerate(self.places.rows[slice(*rows)]):
            for x, (left, right) in enumerate(self.places.columns[slice(*columns)]):
                images[y * width + x, :, top:bottom, left:right] = self._value[:, None, None]
        return images

    def _run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept: list[torch.Tensor] = []
        logits = self._network.run(images, [self._layer], lambda _, maps: kept.append(maps.clone()))
        return kept[0], logits if self._classify else None


def _totals(change: Change, features: torch.Tensor) -> torch.Tensor:
    """By how much the sums over the maps of some features change: (T_y, T_x, F) float64."""
    # Spans of all positions lie end to end, so a sum over those of each position is a product with
    # a matrix of zeros and ones, along the rows and along the columns.
    values = change.values[:, :, features].double()
    down, across = _membership(change.rows), _membership(change.columns)
    return torch.einsum("au,uvf,bv->abf", down, values, across)


def _membership(spans: Spans) -> torch.Tensor:
    """1 where an element (column) belongs to a position (row): (T, U) float64."""
    numbers = torch.arange(spans.count, device=spans.start.device)
    return (numbers[:, None] == spans.owner).double()


def _split(whole: Range, most: int) -> list[Range]:
    """As few ranges of at most `most` as possible, of nearly equal length."""
    start, length = whole[0], whole[1] - whole[0]
    count = -(-length // most)
    cuts = [start + length * part // count for part in range(count + 1)]
    return list(pairwise(cuts))
