"""Which inputs a unit sees (receptive field) and which units an input reaches (projective field).

Receptive fields are windows: of one size for every unit, at an offset that is linear in the unit's
position, so that crops of many units are one batch. Projective fields are exact sets of rows and
of columns, carried through the graph by a boolean matrix `reach` (outputs, inputs) for each
operation and axis, true where an output depends on an input. So they hold at borders, for dilated
windows, and for branches that meet again. All are (y, x) in positions of a node's map; a vector
counts as a map of one position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.graph import Graph, Node

Mask = NDArray[np.bool_]
Index = TypeVar("Index", int, NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Window:
    """What a unit at (y, x) needs of a map below it: `size`, at stride * position + offset.

    It may hang over the border of the map. Where it would be as large as the map, it is the
    whole map for every unit: stride 0 and offset 0.
    """

    size: ops.Pair
    stride: ops.Pair
    offset: ops.Pair

    def origin(self, y: Index, x: Index) -> tuple[Index, Index]:
        """First row and column of the window of the unit at (y, x); not clipped."""
        return y * self.stride[0] + self.offset[0], x * self.stride[1] + self.offset[1]


def spatial_size(node: Node) -> ops.Pair:
    """Height and width of a node's map; (1, 1) for a vector."""
    match node.shape:
        case (_, height, width):
            return height, width
        case (_,):
            return 1, 1
        case _:
            raise node.unsupported("geometry needs maps (C, H, W) or vectors (C,)")


def reached(
    graph: Graph, name: str, rows: Mask, columns: Mask, target: str
) -> dict[str, tuple[Mask, Mask]]:
    """For every node from `name` up to `target`: the rows and the columns that are reached.

    `rows` (P, H) are P sets of rows of `name`, `columns` (Q, W) are Q sets of its columns; for a
    node with a map of h x w the answer is (P, h) and (Q, w). Raises UnsupportedOperation.
    """
    masks = {name: (rows, columns)}
    for above in reversed(graph.ancestors(target)):
        node = graph.nodes[above]
        for source in dict.fromkeys(node.inputs):
            if source not in masks:
                continue
            reach = _reach(graph.nodes[source], node)
            y, x = (_through(mask, r) for mask, r in zip(masks[source], reach, strict=True))
            if above in masks:  # also reached through another input
                y, x = masks[above][0] | y, masks[above][1] | x
            masks[above] = (y, x)
    return masks


def _through(mask: Mask, reach: Mask) -> Mask:
    """Which outputs the inputs of each row of `mask` reach."""
    # A boolean matrix product: counted in floats, for which numpy has a fast one.
    counts = mask.astype(np.float32) @ reach.T.astype(np.float32)
    return np.asarray(counts > 0)


def windows(graph: Graph, name: str, whole: bool = True) -> dict[str, Window]:
    """The window of a unit of `name` in every node below it, itself included.

    `whole=False` leaves windows larger than the map as they are. Raises UnsupportedOperation.
    """
    spans = {name: [_Span(1, 1, 0), _Span(1, 1, 0)]}
    for below in graph.ancestors(name):
        node = graph.nodes[below]
        if whole:
            spans[below] = [
                _whole(size) if span.size >= size else span
                for span, size in zip(spans[below], spatial_size(node), strict=True)
            ]
        for source in dict.fromkeys(node.inputs):
            sizes = spatial_size(graph.nodes[source])
            needed = [_needed(node, axis, spans[below][axis], sizes[axis]) for axis in (0, 1)]
            if source in spans:
                pairs = zip(spans[source], needed, sizes, strict=True)
                needed = [_union(one, other, size) for one, other, size in pairs]
            spans[source] = needed
    return {
        below: Window((y.size, x.size), (y.stride, x.stride), (y.offset, x.offset))
        for below, (y, x) in spans.items()
    }


class _Span(NamedTuple):
    """A window along one axis."""

    size: int
    stride: int
    offset: int


def _whole(size: int) -> _Span:
    return _Span(size, 0, 0)


def _union(one: _Span, other: _Span, size: int) -> _Span:
    if one.stride != other.stride:
        return _whole(size)
    start = min(one.offset, other.offset)
    stop = max(one.offset + one.size, other.offset + other.size)
    return _Span(stop - start, one.stride, start)


def _needed(node: Node, axis: int, span: _Span, size: int) -> _Span:
    """What `span` of a node's output needs of an input of `size`."""
    match node.operation:
        case (
            ops.Convolution(window=window)
            | ops.MaxPool(window=window)
            | ops.AveragePool(window=ops.Sliding() as window)
        ) if span.stride:
            stride = window.stride[axis]
            return _Span(
                (span.size - 1) * stride + window.span[axis],
                span.stride * stride,
                span.offset * stride - window.padding[axis],
            )
        case ops.Convolution() | ops.MaxPool() | ops.AveragePool() | ops.Flatten() | ops.Linear():
            return _whole(size)
        case ops.Opaque():
            raise node.unsupported("receptive fields cannot be computed through it")
        case _:
            return span


def _reach(source: Node, node: Node) -> tuple[Mask, Mask]:
    """Along rows and along columns: which outputs of `node` depend on which inputs."""
    before, after = spatial_size(source), spatial_size(node)
    match node.operation:
        case ops.Convolution(window=window) | ops.MaxPool(window=window):
            rows, columns = (_sliding(window, axis, before[axis], after[axis]) for axis in (0, 1))
            return rows, columns
        case ops.AveragePool(rows=rows_, columns=columns_):
            return rows_.cpu().numpy() != 0, columns_.cpu().numpy() != 0
        case ops.Flatten() | ops.Linear():
            return np.ones((1, before[0]), bool), np.ones((1, before[1]), bool)
        case ops.Opaque():
            raise node.unsupported("receptive fields cannot be computed through it")
        case _:
            return np.eye(before[0], dtype=bool), np.eye(before[1], dtype=bool)


@cache
def _sliding(window: ops.Sliding, axis: int, before: int, after: int) -> Mask:
    outputs = np.arange(after)[:, None]
    taps = np.arange(window.kernel[axis]) * window.dilation[axis] - window.padding[axis]
    inputs = outputs * window.stride[axis] + taps  # (outputs, taps), padding included
    reach = np.zeros((after, before), bool)
    inside = (inputs >= 0) & (inputs < before)
    reach[np.broadcast_to(outputs, inputs.shape)[inside], inputs[inside]] = True
    return reach
