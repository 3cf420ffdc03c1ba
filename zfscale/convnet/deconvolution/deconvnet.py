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
from numpy.typing import NDArray

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.geometry import windows
from zfscale.convnet.capture.graph import Graph, Node
from zfscale.convnet.deconvolution import filtering
from zfscale.convnet.deconvolution.crops import Crops
from zfscale.convnet.deconvolution.switches import ABSENT
from zfscale.convnet.deconvolution.unpooling import accumulate, place
from zfscale.convnet.network import Network
from zfscale.records import Layer

_UNPOOLING = {"accumulate": accumulate, "place": place}
Unpooling = Literal["accumulate", "place"]
Switches = NDArray[np.uint8]

BATCH = 64
"""Units projected together."""
BATCH_BYTES = 1 << 25
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
        start = np.zeros((len(features), self._path[0].shape[0], 1, 1), np.float32)
        start[np.arange(len(features)), features, 0, 0] = activations
        signals = {self._path[0].name: torch.as_tensor(start, device=self._device)}
        for node in self._path:
            signal = signals.pop(node.name)
            if isinstance(node.operation, ops.Input):
                return signal.cpu().numpy()
            for source, part in self._back(node, signal, crops, switches):
                known = signals.get(source)
                signals[source] = part if known is None else known + part
        raise AssertionError("the way down ended above the input")

    def _back(
        self, node: Node, signal: torch.Tensor, crops: Crops, switches: Mapping[str, Switches]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What `node` sends to each of its inputs, in the window of that input."""
        operation = node.operation
        if isinstance(operation, ops.AveragePool):
            source = node.inputs[0]
            rows = crops.cut(operation.rows, node.name, source, 0)
            columns = crops.cut(operation.columns, node.name, source, 1)
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
            laid = crops.lay(part, node, source, sliding)
            # A filter reaches beyond the border of the map below; a max pool has no switches there.
            spills = isinstance(operation, ops.Convolution) and not isinstance(
                below.operation, ops.MaxPool
            )
            yield source, crops.clear_outside(below, laid) if spills else laid

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
            raise node.unsupported("deconvolution cannot pass through it")
        case ops.MaxPool(window=window) if window.kernel[0] * window.kernel[1] > ABSENT:
            raise node.unsupported(f"a switch has {ABSENT} places at most, not {window.kernel}")
