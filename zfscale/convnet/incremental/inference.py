"""Incremental inference: only what an occluder changes is computed again.

The activations of the image without an occluder are kept. An occluder then changes a box of each
map, its projective field. Changes are computed node by node from the input to the nodes that are
asked for, and for nothing else. The result equals that of running the network on each occluded
image, but for the rounding of sums taken in another order. (The task is that of Nakandala, Kumar &
Papakonstantinou, "Incremental and Approximate Inference for Faster Occlusion-based Deep CNN
Explanations", SIGMOD 2019.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zfscale.convnet.capture import geometry, instrument
from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.graph import Node
from zfscale.convnet.incremental import differences
from zfscale.convnet.incremental.differences import Filters
from zfscale.convnet.incremental.spans import Change, Spans, part
from zfscale.convnet.network import Network

ADDING = 16
"""Cost of adding up one product of a convolution, in multiply-adds."""
GATHERING = 24
"""Cost of gathering one input of a product, in multiply-adds."""
LEAST_CHANNELS = 32
"""Below, matrix products are too thin to be fast, and inputs are gathered."""

LARGEST_SIDE = 14
"""Rows and columns of positions that are computed together at most: with more, matrix products
are hardly faster, and more is held.
"""

Nonlinear = ops.Rectification | ops.Pointwise | ops.Normalisation
Function = Callable[[torch.Tensor], torch.Tensor]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where occluders are put: the spans [start, stop) of rows and of columns that they cover.

    Positions are all pairs of the two.
    """

    rows: tuple[Range, ...]
    columns: tuple[Range, ...]


class Incremental:
    """A network prepared for computing what occluders change at some of its nodes.

    Raises UnsupportedOperation where an operation below these nodes cannot be passed.
    """

    def __init__(self, network: Network, targets: Sequence[str]) -> None:
        """`targets` are names of graph nodes."""
        self.network = network
        self.graph = network.traced
        self.targets = tuple(dict.fromkeys(targets))
        nodes = self.graph.nodes
        self.inputs: dict[str, tuple[str, ...]] = {}
        wanted = list(self.targets)
        for name in wanted:  # grows while it is gone through
            if name not in self.inputs:
                self.inputs[name] = self._sources(nodes[name])
                wanted.extend(self.inputs[name])
        self.order = [name for name in nodes if name in self.inputs]
        self._check()
        self._filters: dict[str, Filters] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._functions: dict[str, Function] = {}
        self._prepare()
        remembered = set(self.targets)
        for name in self.order:
            if isinstance(nodes[name].operation, Nonlinear | ops.MaxPool):
                remembered.update(self.inputs[name])
            if isinstance(nodes[name].operation, ops.MaxPool | ops.Normalisation):
                remembered.add(name)
        pairs = [(name, name) for name in self.order if name in remembered - {self.graph.input}]
        self._program = instrument.program(network.module, self.graph, pairs, (), whole=False)

    @torch.inference_mode()
    def remember(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The activations of a normalised image (1, 3, H, W) that changes are computed with.

        Maps are (H, W, C); those of the targets are among them.
        """
        activations: dict[str, torch.Tensor] = {}

        def keep(name: str, values: torch.Tensor) -> None:
            activations[name] = (
                values[0].permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
            )

        keep(self.graph.input, image)
        self._program(image.clone(), zf_visit=keep, zf_visit_pool=None)
        return activations

    def map_of(self, node: str) -> tuple[int, int, int]:
        """Channels, height and width of a node; a vector is a map of one position."""
        shape = self.graph.nodes[node].shape
        return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])

    def weights(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Those of a fully connected layer by place in the map below it: (H, W, C, N)."""
        if name not in self._weights:
            by_place = weight.view(-1, *self.map_of(self.inputs[name][0])).permute(2, 3, 1, 0)
            alone = by_place.shape[:2] == (1, 1)  # then a product takes them as they lie
            self._weights[name] = by_place if alone else by_place.contiguous()
        return self._weights[name]

    def spans(self, grid: Grid) -> dict[str, tuple[Spans, Spans]]:
        """For each node what the rows and what the columns of a grid change of it.

        Raises UnsupportedOperation.
        """
        device = self.network.device
        size = geometry.spatial_size(self.graph.nodes[self.graph.input])
        down, across = _mask(grid.rows, size[0]), _mask(grid.columns, size[1])
        spans: dict[str, tuple[Spans, Spans]] = {}
        for target in self.targets:
            reached = geometry.reached(self.graph, self.graph.input, down, across, target)
            for name in reached.keys() & self.inputs.keys() - spans.keys():
                rows, columns = (Spans.of(mask, device) for mask in reached[name])
                spans[name] = rows, columns
        for name in self.order:
            if len(self.graph.nodes[name].shape) == 1:
                rows, columns = (Spans.whole(len(mask), 1, device) for mask in (down, across))
                spans[name] = rows, columns
        return spans

    def _sources(self, node: Node) -> tuple[str, ...]:
        """What a node is computed from.

        A fully connected layer from the map that was flattened. A max pool of what was rectified
        from the map before: the two may change places, and there is less to rectify after it.
        """
        below = self.graph.nodes[node.inputs[0]] if node.inputs else node
        if isinstance(node.operation, ops.Linear):
            while isinstance(below.operation, ops.Identity | ops.Flatten):
                below = self.graph.nodes[below.inputs[0]]
            return (below.name,)
        rectified = isinstance(below.operation, ops.Rectification)
        if isinstance(node.operation, ops.MaxPool) and rectified:
            return below.inputs
        return node.inputs

    def _check(self) -> None:
        for name in self.order:
            node = self.graph.nodes[name]
            if isinstance(node.operation, ops.Opaque):
                raise node.unsupported("the change of its output cannot be computed incrementally")
            geometry.spatial_size(node)

    def _prepare(self) -> None:
        for name in self.order:
            node = self.graph.nodes[name]
            match node.operation:
                case ops.Convolution():
                    self._filters[name] = Filters(node.operation)
                case ops.Rectification():
                    self._functions[name] = torch.relu_
                case ops.Pointwise() | ops.Normalisation():
                    module = self.network.module
                    self._functions[name] = instrument.single(module, self.graph, name)


class Sweep:
    """A network under all occluders of a grid, a block of positions at a time."""

    def __init__(self, inference: Incremental, grid: Grid, memory: int) -> None:
        """`memory` is what the changes of a block may take in bytes, approximately."""
        self.inference, self.grid = inference, grid
        self.spans = inference.spans(grid)
        self._scatter = {name: self._is_scattered(name) for name in inference._filters}
        self._uses = Counter(
            source for name in inference.order for source in inference.inputs[name]
        )
        self._uses.update(inference.targets)
        self._flattened = {
            source
            for name in inference.order
            if isinstance(inference.graph.nodes[name].operation, ops.Linear | ops.Flatten)
            for source in inference.inputs[name]
        }
        # Changes grow with the positions of a block. At a step about six tensors as large as the
        # largest change are held: inputs, outputs and what lies between them.
        positions = len(grid.rows) * len(grid.columns)
        largest = max(self._numbers(name) for name in self.spans)
        each = max(1, 6 * 4 * largest // positions)
        self.side = max(1, min(LARGEST_SIDE, math.isqrt(memory // each)))

    @torch.inference_mode()
    def run(
        self, memory: Mapping[str, torch.Tensor], value: torch.Tensor, rows: Range, columns: Range
    ) -> dict[str, Change]:
        """What the occluders of some rows and columns of the grid change at the targets.

        The nodes are gone through in the order of execution; the change of a node is dropped as
        soon as the last node that needs it is done. `memory` is what `Incremental.remember` gave,
        `value` (3,) the normalised colour.
        """
        inference = self.inference
        spans = {name: (part(y, *rows), part(x, *columns)) for name, (y, x) in self.spans.items()}
        changes: dict[str, Change] = {}
        left = Counter(self._uses)
        for name in inference.order:
            y, x = spans[name]
            sources = inference.inputs[name]
            below = [changes[source] for source in sources]
            if not y.length * x.length:  # no occluder reaches this map
                values = value.new_zeros(y.length, x.length, inference.map_of(name)[0])
            elif inference.graph.input == name:
                values = value - differences.pick(memory[name], y, x)
            else:
                values = self._step(name, below, memory, y, x)
            changes[name] = Change(values, y, x)
            for source in sources:
                left[source] -= 1
                if not left[source]:
                    del changes[source]
        return {name: changes[name] for name in inference.targets}

    def _step(
        self,
        name: str,
        below: list[Change],
        memory: Mapping[str, torch.Tensor],
        rows: Spans,
        columns: Spans,
    ) -> torch.Tensor:
        inference = self.inference
        change, source = below[0], inference.inputs[name][0]
        match inference.graph.nodes[name].operation:
            case ops.Convolution():
                filters, way = inference._filters[name], self._scatter[name]
                values = differences.convolve(change, filters, way, rows, columns)
            case ops.BatchNorm(scale=scale):
                values = change.values * scale
            case ops.Rectification() | ops.Pointwise() | ops.Normalisation():
                maps = memory[source], memory.get(name)
                values = differences.pointwise(change, *maps, inference._functions[name])
            case ops.MaxPool(window=window):
                maps = memory[source], memory[name]
                rectified = source not in inference.graph.nodes[name].inputs
                values = differences.max_pool(change, *maps, window, rectified, rows, columns)
            case ops.AveragePool() as pool:
                values = differences.average_pool(change, pool, rows, columns)
            case ops.Linear(weight=weight):
                values = differences.linear(change, inference.weights(name, weight))
            case ops.Flatten():
                _, height, width = inference.map_of(source)
                flat = differences.flatten(change, (0, height), (0, width)).permute(0, 3, 1, 2)
                values = flat.reshape(rows.count, columns.count, -1)
            case ops.Add():
                values = differences.add(below, rows, columns)
            case ops.Concatenation():
                values = differences.concatenate(below, rows, columns)
            case _:
                values = change.values
        return values

    def _numbers(self, name: str) -> int:
        """What the change of a node holds at all positions; a flattened one the whole map."""
        channels, height, width = self.inference.map_of(name)
        if name in self._flattened:
            return height * width * channels * len(self.grid.rows) * len(self.grid.columns)
        rows, columns = self.spans[name]
        return rows.length * columns.length * channels

    def _is_scattered(self, name: str) -> bool:
        """Which way to apply the filters takes less time."""
        filters = self.inference._filters[name]
        # Scattering multiplies each changed input with every tap and adds up the products;
        # gathering collects the inputs of each changed output. Fewer changed inputs than outputs
        # make the first the better one, unless adding up costs more than it saves.
        before, after = (
            rows.length * columns.length
            for rows, columns in (self.spans[self.inference.inputs[name][0]], self.spans[name])
        )
        height, width = filters.window.kernel
        stride = filters.window.stride[0] * filters.window.stride[1]
        inputs = self.inference.map_of(self.inference.inputs[name][0])[0]
        each, outputs = inputs // filters.groups, filters.channels
        if each < LEAST_CHANNELS:
            return False
        scatter = before * height * width / stride * outputs * (each + ADDING)
        gather = after * height * width * (each * outputs + inputs * GATHERING)
        return scatter < gather


def _mask(ranges: Sequence[Range], size: int) -> geometry.Mask:
    places = np.arange(size)
    start, stop = np.array(ranges).T
    return np.asarray((places >= start[:, None]) & (places < stop[:, None]))
