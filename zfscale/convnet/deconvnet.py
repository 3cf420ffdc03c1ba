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

from zfscale.convnet import filtering, unpooling
from zfscale.convnet import operations as ops
from zfscale.convnet.geometry import Window, extent, windows
from zfscale.convnet.graph import Graph, Node
from zfscale.convnet.network import Layer, Network
from zfscale.convnet.switches import ABSENT

Unpooling = Literal["accumulate", "place"]
Positions = tuple[NDArray[np.int64], NDArray[np.int64]]

BATCH = 64
"""Units projected together."""
BATCH_BYTES = 1 << 28
"""Largest map of a batch; wide receptive fields make smaller batches."""


class Deconvnet:
    """Projections of the units of one node.

    `pools` maps each max pool below it to the shape (C, h, w) of a unit's switches; `field` is
    the size (h, w) of a projection. Raises UnsupportedOperation if anything is in the way.
    """

    def __init__(self, graph: Graph, node: str, unpooling: Unpooling = "accumulate") -> None:
        self.windows = windows(graph, node)
        self._nodes = graph.nodes
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
        signals = {self._path[0].name: torch.as_tensor(start, device=self._device())}
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
