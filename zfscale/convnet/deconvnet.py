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
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from zfscale.convnet import filtering
from zfscale.convnet import operations as ops
from zfscale.convnet.geometry import Window, extent, windows
from zfscale.convnet.graph import Graph, Node
from zfscale.convnet.network import Layer, Network
from zfscale.convnet.switches import ABSENT
from zfscale.convnet.unpooling import accumulate, place

_UNPOOLING = {"accumulate": accumulate, "place": place}
Unpooling = Literal["accumulate", "place"]
Positions = tuple[NDArray[np.int64], NDArray[np.int64]]

BATCH = 64
"""Units projected together."""
BATCH_BYTES = 1 << 24
"""Largest map of a batch: what is larger leaves the caches, and costs fresh pages each time."""


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
        switches: Mapping[str, NDArray[np.uint8]],
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
                (y[units], x[units]),
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
        at: Positions,
        switches: Mapping[str, NDArray[np.uint8]],
    ) -> NDArray[np.float32]:
        start = np.zeros((len(features), self._path[0].shape[0], 1, 1), np.float32)
        start[np.arange(len(features)), features, 0, 0] = activations
        signals = {self._path[0].name: torch.as_tensor(start, device=self._device)}
        for node in self._path:
            signal = signals.pop(node.name)
            if isinstance(node.operation, ops.Convolution | ops.Input):
                signal = self._inside(node, signal, at)
            if isinstance(node.operation, ops.Input):
                return signal.cpu().numpy()
            for source, part in self._back(node, signal, at, switches):
                known = signals.get(source)
                signals[source] = part if known is None else known + part
        raise AssertionError("the way down ended above the input")

    def _back(
        self,
        node: Node,
        signal: torch.Tensor,
        at: Positions,
        switches: Mapping[str, NDArray[np.uint8]],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What `node` sends to each of its inputs, in the window of that input."""
        source = node.inputs[0]
        sliding = None
        match node.operation:
            case ops.Convolution(window=sliding):
                signal = self._filters[node.name](signal)
            case ops.MaxPool(window=sliding):
                record = torch.as_tensor(switches[node.name], device=signal.device)
                signal = self._unpool(signal, record, sliding)
            case ops.Rectification():
                signal = signal.clamp(min=0)
            case ops.BatchNorm(scale=scale):
                signal = signal * scale[:, None, None]
            case ops.AveragePool(rows=rows, columns=columns):
                down, right = (
                    self._cut(matrix, node.name, source, axis, at)
                    for axis, matrix in enumerate((rows, columns))
                )
                yield source, torch.einsum("nchw,nhi,nwj->ncij", signal, down, right)
                return
            case ops.Linear(weight=weight):
                signal = (signal.flatten(1) @ weight)[:, :, None, None]
            case ops.Flatten():
                signal = signal.reshape(-1, *self._nodes[source].shape)
        parts = [signal] * len(node.inputs)
        if isinstance(node.operation, ops.Concatenation):
            parts = list(signal.split([self._nodes[name].shape[0] for name in node.inputs], 1))
        for name, part in zip(node.inputs, parts, strict=True):
            yield name, self._lay(part, node.name, name, sliding, at)

    def _first(self, name: str, axis: int, at: Positions) -> NDArray[np.int64]:
        """Where the units' windows in a node begin, along one axis."""
        return self.windows[name].origin(*at)[axis]

    def _inside(self, node: Node, signal: torch.Tensor, at: Positions) -> torch.Tensor:
        """The signal, with nothing where a window hangs over the border of the map."""
        rows, columns = (
            _within(self._first(node.name, axis, at), self.windows[node.name].size[axis], size)
            for axis, size in enumerate(extent(node))
        )
        if rows.all() and columns.all():
            return signal
        outside = ~(rows[:, None, :, None] & columns[:, None, None, :])
        return signal.masked_fill(torch.as_tensor(outside, device=signal.device), 0)

    def _lay(
        self,
        part: torch.Tensor,
        node: str,
        source: str,
        sliding: ops.Sliding | None,
        at: Positions,
    ) -> torch.Tensor:
        """Lay what `node` sends into the window of its input `source`, which may be larger."""
        size = self.windows[source].size
        shift = np.empty((len(part), 2), np.int64)
        for axis in (0, 1):
            first = self._first(node, axis, at)
            if sliding is not None:
                first = first * sliding.stride[axis] - sliding.padding[axis]
            shift[:, axis] = first - self._first(source, axis, at)
        if part.shape[2:] == size and not shift.any():
            return part
        laid = part.new_zeros(*part.shape[:2], *size)
        laid = laid.contiguous(memory_format=torch.channels_last)
        for down, right in np.unique(shift, axis=0):
            units = torch.as_tensor((shift == (down, right)).all(1), device=part.device)
            seen = part[
                units,
                :,
                max(-down, 0) : max(size[0] - down, 0),
                max(-right, 0) : max(size[1] - right, 0),
            ]
            (y, x), (height, width) = (max(down, 0), max(right, 0)), seen.shape[2:]
            laid[units, :, y : y + height, x : x + width] = seen
        return laid

    def _cut(
        self, matrix: torch.Tensor, node: str, source: str, axis: int, at: Positions
    ) -> torch.Tensor:
        """For each unit the part (n, window of node, window of source) of an average's matrix."""
        found = []
        for name, size in zip((node, source), matrix.shape, strict=True):
            first, count = self._first(name, axis, at), self.windows[name].size[axis]
            inside = torch.as_tensor(_within(first, count, size))
            index = torch.as_tensor(first[:, None] + np.arange(count)).clamp(0, size - 1)
            found.append((index.to(matrix.device), inside.to(matrix.device)))
        (out, out_inside), (into, into_inside) = found
        cut = matrix[out[:, :, None], into[:, None, :]]
        return cut.masked_fill(~(out_inside[:, :, None] & into_inside[:, None, :]), 0)


def _within(first: NDArray[np.int64], count: int, size: int) -> NDArray[np.bool_]:
    """Which of the positions first to first + count lie in a map of that size: (n, count)."""
    positions = first[:, None] + np.arange(count)
    return (positions >= 0) & (positions < size)


def _check(node: Node) -> None:
    match node.operation:
        case ops.Opaque() | ops.Pointwise():
            raise node.unsupported("deconvolution cannot pass through it")
        case ops.MaxPool(window=window) if window.kernel[0] * window.kernel[1] > ABSENT:
            raise node.unsupported(f"a switch has {ABSENT} places at most, not {window.kernel}")
