"""The deconvnet: from one activation down to the pixels that caused it.

Zeiler & Fergus, section 2.1: unpool by the switches, rectify where the forward pass rectified,
filter with the transposed weights; no biases, and the pixel layer is not rectified. Batch norm
counts as its linear part, local response (contrast) normalisation is passed through unchanged,
an average pool becomes its transpose. An addition copies the signal to all its inputs, a
concatenation splits it; a node with several consumers adds up what they send.

Everything happens on crops: at each node the window that the unit needs, so the cost is that
of its receptive field. Knows records, not images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.geometry import Window, spatial_size, windows
from zfscale.convnet.capture.graph import Graph, Node
from zfscale.convnet.deconvolution import filtering
from zfscale.convnet.deconvolution.switches import ABSENT, accumulate, crop, place
from zfscale.convnet.network import Network
from zfscale.records import Layer

_UNPOOLING = {"accumulate": accumulate, "place": place}
Unpooling = Literal["accumulate", "place"]
Switches = NDArray[np.uint8]

BATCH = 64
"""Units projected together."""
BATCH_BYTES = 1 << 25
"""Largest map of a batch: what is larger leaves the caches, and costs fresh pages each time."""


@dataclass(frozen=True)
class Crops:
    """Windows of n units at (y, x), both int64 (n,), in every node below them."""

    windows: Mapping[str, Window]
    y: NDArray[np.int64]
    x: NDArray[np.int64]

    def clear_outside(self, node: Node, signal: torch.Tensor) -> torch.Tensor:
        """`signal` (n, C, h, w) at `node`, zero where windows hang over the border of its map."""
        rows, columns = (self._on_map(node.name, axis, spatial_size(node)[axis]) for axis in (0, 1))
        if rows.all() and columns.all():
            return signal
        outside = ~(rows[:, None, :, None] & columns[:, None, None, :])
        return signal.masked_fill(torch.as_tensor(outside, device=signal.device), 0)

    def place_in_window(
        self, part: torch.Tensor, node: Node, source: str, sliding: ops.Sliding | None
    ) -> torch.Tensor:
        """Place what `node` sends to its input `source` in the window there, zero elsewhere.

        `part` (n, C, ...) begins where the first sliding window of the crop at `node` begins, or
        where the crop itself does; the window of `source` is larger if other nodes need more of
        it.
        """
        size = self.windows[source].size
        shift = np.empty((len(part), 2), np.int64)
        for axis in (0, 1):
            first = self._first(node.name, axis)
            if sliding is not None:
                first = first * sliding.stride[axis] - sliding.padding[axis]
            shift[:, axis] = first - self._first(source, axis)
        if tuple(part.shape[2:]) == size and not shift.any():
            return part
        n, channels = part.shape[:2]
        placed = part.new_zeros(n, *size, channels).permute(0, 3, 1, 2)
        # All units have one shift, unless the window of `source` is its whole map.
        for down, right in np.unique(shift, axis=0).tolist():
            units = torch.as_tensor((shift == (down, right)).all(1), device=part.device)
            top, bottom = max(-down, 0), max(size[0] - down, 0)
            left, end = max(-right, 0), max(size[1] - right, 0)
            inside = part[units, :, top:bottom, left:end]
            (y, x), (height, width) = (max(down, 0), max(right, 0)), inside.shape[2:]
            placed[units, :, y : y + height, x : x + width] = inside
        return placed

    def matrix_between(
        self, matrix: torch.Tensor, node: str, source: str, axis: int
    ) -> torch.Tensor:
        """For each unit the part of an average's matrix that connects its two windows.

        `matrix` is (map of node, map of source), the result (n, window of node, of source).
        """
        index = []
        for name, size in zip((node, source), matrix.shape, strict=True):
            places = self._first(name, axis)[:, None] + np.arange(self.windows[name].size[axis])
            index.append(torch.as_tensor(places.clip(0, size - 1), device=matrix.device))
        shares = matrix[index[0][:, :, None], index[1][:, None, :]]
        # Beyond the border of the map of `node` there is no signal, so it matters here alone.
        outside = torch.as_tensor(~self._on_map(source, axis, matrix.shape[1]))
        return shares.masked_fill(outside[:, None, :].to(matrix.device), 0)

    def _first(self, name: str, axis: int) -> NDArray[np.int64]:
        """Row (axis 0) or column (axis 1) in which each unit's window at a node begins."""
        return self.windows[name].origin(self.y, self.x)[axis]

    def _on_map(self, name: str, axis: int, size: int) -> NDArray[np.bool_]:
        """Which positions of each window lie on a map of that size: (n, window)."""
        places = self._first(name, axis)[:, None] + np.arange(self.windows[name].size[axis])
        return (places >= 0) & (places < size)


class Deconvnet:
    """Projections of the units of one node.

    `pools` maps each max pool below it to the shape (C, h, w) of a unit's switches; `field` is
    the size (h, w) of a projection. Raises UnsupportedOperation if anything is in the way.
    """

    def __init__(self, graph: Graph, node: str, unpooling: Unpooling = "accumulate") -> None:
        self.windows = windows(graph, node)
        self._nodes = graph.nodes
        self._device = graph.device
        self._path = [graph.nodes[name] for name in graph.ancestors(node)]
        for step in self._path:
            _check(step)
        self.field = self.windows[graph.input].size
        self.pools = {
            step.name: (step.shape[0], *self.windows[step.name].size)
            for step in reversed(self._path)
            if isinstance(step.operation, ops.MaxPool)
        }
        self._unpool = _UNPOOLING[unpooling]
        self._filters = {
            step.name: filtering.transposed(step.operation)
            for step in self._path
            if isinstance(step.operation, ops.Convolution)
        }

    @staticmethod
    def of(network: Network, layer: Layer, unpooling: Unpooling = "accumulate") -> Deconvnet:
        """The deconvnet of a layer. Raises UnsupportedOperation."""
        return Deconvnet(network.traced, str(layer.node), unpooling)

    def project(
        self,
        features: NDArray[np.integer[Any]],
        activations: NDArray[np.floating[Any]],
        y: NDArray[np.integer[Any]],
        x: NDArray[np.integer[Any]],
        switches: Mapping[str, Switches],
    ) -> NDArray[np.float32]:
        """Project n units at (y, x) of `features` with their activations, all of shape (n,).

        `switches[pool]` has shape (n, *pools[pool]). The result (n, 3, *field) lies in the
        network's input, normalised and with its order of channels; it begins at the origin of the
        input window of each unit, and is zero outside the image.
        """
        projections = np.empty((len(features), 3, *self.field), np.float32)
        size = max(1, min(BATCH, BATCH_BYTES // self._largest()))
        for start in range(0, len(features), size):
            units = slice(start, start + size)
            projections[units] = self._project(
                features[units],
                activations[units],
                Crops(self.windows, y[units].astype(np.int64), x[units].astype(np.int64)),
                {pool: records[units] for pool, records in switches.items()},
            )
        return projections

    def _largest(self) -> int:
        """Bytes of the largest crop of a unit."""
        sizes = (step.shape[0] * np.prod(self.windows[step.name].size) for step in self._path)
        return 4 * int(max(sizes))

    @torch.inference_mode()
    def _project(
        self,
        features: NDArray[np.integer[Any]],
        activations: NDArray[np.floating[Any]],
        crops: Crops,
        switches: Mapping[str, Switches],
    ) -> NDArray[np.float32]:
        # One reverse pass over the nodes, each on the window that the units need of it. The path
        # holds consumers first, so a node's signal is complete when its turn comes.
        start = np.zeros((len(features), self._path[0].shape[0], 1, 1), np.float32)
        start[np.arange(len(features)), features, 0, 0] = activations
        signals = {self._path[0].name: torch.as_tensor(start, device=self._device)}
        for node in self._path:
            signal = signals.pop(node.name)
            if isinstance(node.operation, ops.Input):
                return signal.cpu().numpy()
            for source, part in self._back(node, signal, crops, switches):
                signals[source] = signals[source] + part if source in signals else part
        raise AssertionError("the path down from the unit does not end at the input")

    def _back(
        self, node: Node, signal: torch.Tensor, crops: Crops, switches: Mapping[str, Switches]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What `node` sends to each of its inputs, in the window of that input."""
        operation = node.operation
        if isinstance(operation, ops.AveragePool):
            source = node.inputs[0]
            rows = crops.matrix_between(operation.rows, node.name, source, 0)
            columns = crops.matrix_between(operation.columns, node.name, source, 1)
            # An average is rows @ map @ columns.T, and its transpose rows.T @ signal @ columns.
            yield source, torch.einsum("nchw,nhi,nwj->ncij", signal, rows, columns)
            return
        sliding = operation.window if isinstance(operation, ops.Convolution | ops.MaxPool) else None
        if isinstance(operation, ops.Concatenation):
            channels = [self._nodes[source].shape[0] for source in node.inputs]
            parts = torch.split(signal, channels, dim=1)
        else:
            parts = (self._through(node, signal, switches),) * len(node.inputs)
        for source, part in zip(node.inputs, parts, strict=True):
            below = self._nodes[source]
            placed = crops.place_in_window(part, node, source, sliding)
            # A filter reaches beyond the border of the map below; a max pool has no switches there.
            overhangs = isinstance(operation, ops.Convolution) and not isinstance(
                below.operation, ops.MaxPool
            )
            yield source, crops.clear_outside(below, placed) if overhangs else placed

    def _through(
        self, node: Node, signal: torch.Tensor, switches: Mapping[str, Switches]
    ) -> torch.Tensor:
        """The signal behind an operation that gives all its inputs the same."""
        match node.operation:
            case ops.Convolution():
                signal = self._filters[node.name](signal)
            case ops.MaxPool(window=window):
                record = torch.as_tensor(switches[node.name], device=signal.device)
                signal = self._unpool(signal, record, window)
            case ops.Rectification():
                signal = signal.clamp(min=0)
            case ops.BatchNorm(scale=scale):
                signal = signal * scale[:, None, None]
            case ops.Linear(weight=weight):
                signal = (signal.flatten(1) @ weight)[:, :, None, None]
            case ops.Flatten():
                signal = signal.reshape(-1, *self._nodes[node.inputs[0]].shape)
        return signal


def _check(node: Node) -> None:
    match node.operation:
        case ops.Opaque() | ops.Pointwise():
            raise node.unsupported("deconvolution has no inverse for it")
        case ops.MaxPool(window=window) if window.kernel[0] * window.kernel[1] > ABSENT:
            raise node.unsupported(
                f"a switch is one byte, so a window has at most {ABSENT} places; this one is "
                f"{window.kernel[0]} x {window.kernel[1]}"
            )


Unit = tuple[int, int, int]
"""(feature, y, x) of a layer."""


class Projection(NamedTuple):
    """The part of a unit's projection that lies inside the image: `pixels` (h, w, 3) float32, RGB,
    in the normalised input; the top left one is at row `y0` and column `x0` of that.
    """

    y0: int
    x0: int
    pixels: NDArray[np.float32]


def project(
    network: Network, deconvnet: Deconvnet, image: torch.Tensor, unit: Unit, activation: float
) -> Projection:
    """Project a unit of `deconvnet`'s layer, with the activation that it has in a normalised
    `image` (1, 3, H, W): runs the network once for the switches, so no stored record is needed.
    Zeiler & Fergus (ECCV 2014), section 2.1.
    """
    feature, y, x = unit
    records: dict[str, NDArray[np.uint8]] = {}

    def keep(pool: str, switches: torch.Tensor) -> None:
        records[pool] = crop(switches[0].cpu().numpy(), deconvnet.windows[pool], y, x)[None]

    if deconvnet.pools:
        network.run(image.clone(), pools=tuple(deconvnet.pools), visit_pool=keep)
    (whole,) = deconvnet.project(
        np.array([feature]),
        np.array([activation], np.float32),
        np.array([y]),
        np.array([x]),
        records,
    )
    top, left = deconvnet.windows[network.traced.input].origin(y, x)
    (height, width), (bottom, right) = image.shape[2:], deconvnet.field
    rows = slice(max(-top, 0), min(height - top, bottom))
    columns = slice(max(-left, 0), min(width - left, right))
    colours = slice(None, None, -1 if network.preprocessing.order == "BGR" else 1)
    pixels = whole[colours, rows, columns].transpose(1, 2, 0)
    return Projection(max(top, 0), max(left, 0), np.ascontiguousarray(pixels))
