"""What an operation makes of a change of its input, computed where something changes only.

A convolution, a sum, an average pool and a fully connected layer are linear: they carry the
change itself, whatever the map. A rectification, a normalisation and a max pool need the map
too: they are computed with the change and without it. Maps here are (H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from zfscale.convnet import operations as ops
from zfscale.convnet.spans import (
    Spans,
    locate,
    part,
    phase,
    phase_taps,
    product,
    same,
    taps,
    windows,
)

PORTION = 32 << 20
"""Bytes of products of a convolution that are held at a time: what a cache can keep."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """How a block of T_y x T_x positions changes a map: `values` (U, V, C) on spans of length U
    along the rows and V along the columns.
    """

    values: torch.Tensor
    rows: Spans
    columns: Spans


class _Phase(NamedTuple):
    y: int
    x: int
    taps: tuple[int, int]
    weight: torch.Tensor  # (groups, C / groups, taps * N / groups)


class Filters:
    """The weights of a convolution, laid out for the two ways to apply them to a change.

    `scatter` multiplies each changed input once with all taps and adds the products up where they
    belong: no product is lost on what did not change. Of inputs with few channels more time goes
    into the adding than into the products; there, each changed output gathers its inputs.
    """

    def __init__(self, convolution: ops.Convolution) -> None:
        self.window, self.groups = convolution.window, convolution.groups
        weight = convolution.weight
        outputs, inputs, height, width = weight.shape
        self.channels = outputs
        grouped = weight.reshape(self.groups, outputs // self.groups, inputs, height, width)
        self._gathered = grouped.permute(0, 3, 4, 2, 1).reshape(
            self.groups, height * width * inputs, -1
        )
        self._scattered = grouped.permute(0, 2, 3, 4, 1)  # (groups, inputs, height, width, outputs)
        self._phases: tuple[_Phase, ...] = ()

    @property
    def phases(self) -> tuple[_Phase, ...]:
        """The filters by phase of the stride, where any of their taps is in it."""
        if not self._phases:
            found = []
            for y in range(self.window.stride[0]):
                for x in range(self.window.stride[1]):
                    rows, columns = phase_taps(self.window, 0, y), phase_taps(self.window, 1, x)
                    if rows and columns:
                        some = self._scattered[:, :, rows][:, :, :, columns]
                        size = len(rows), len(columns)
                        found.append(_Phase(y, x, size, some.flatten(2).contiguous()))
            self._phases = tuple(found)
        return self._phases

    def scatter(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The change of the output on its spans, (U, V, C_out)."""
        total: torch.Tensor | None = None
        for one in self.phases:
            y, from_y = phase(change.rows, rows, self.window, 0, one.y)
            x, from_x = phase(change.columns, columns, self.window, 1, one.x)
            inputs = change.values
            if len(y) < inputs.shape[0] or len(x) < inputs.shape[1]:
                inputs = inputs[y[:, None], x]
            down, across = one.taps
            tap_y = torch.arange(down, device=y.device) * across
            tap_x = torch.arange(across, device=x.device)
            absent = len(y) * len(x) * down * across
            at_y = from_y * (len(x) * down * across) + tap_y
            index = product(at_y, from_x * (down * across) + tap_x, absent)
            sums = [
                _sum_products(given, weight, index)
                for given, weight in zip(inputs.chunk(self.groups, 2), one.weight, strict=True)
            ]
            found = sums[0] if self.groups == 1 else torch.cat(sums, 1)
            total = found if total is None else total.add_(found)
        if total is None:
            return change.values.new_zeros(rows.length, columns.length, self.channels)
        return total.view(rows.length, columns.length, self.channels)

    def gather(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The same, output by output."""
        height, width, channels = change.values.shape
        table = torch.cat(
            [change.values.reshape(-1, channels), change.values.new_zeros(1, channels)]
        )
        index = product(
            taps(change.rows, rows, self.window, 0) * width,
            taps(change.columns, columns, self.window, 1),
            height * width,
        )
        seen = table.index_select(0, index.flatten())
        seen = seen.view(len(index), index.shape[1], self.groups, channels // self.groups)
        seen = seen.permute(2, 0, 1, 3).reshape(self.groups, len(index), -1)
        found = torch.bmm(seen, self._gathered).transpose(0, 1)
        return found.reshape(rows.length, columns.length, self.channels)


def _sum_products(given: torch.Tensor, weight: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Products of inputs (A, B, C) with `weight` (C, taps * N), added up by `index` (outputs, n).

    A row of products is N numbers; the row behind the last one is zero.
    """
    inputs = given.reshape(-1, given.shape[2])
    count = len(inputs) * weight.shape[1]
    width = weight.shape[1] // index.shape[1]
    products = inputs.new_empty(count + width)
    torch.mm(inputs, weight, out=products[:count].view(len(inputs), weight.shape[1]))
    products[count:] = 0
    return functional.embedding_bag(index, products.view(-1, width), mode="sum")


def convolve(
    change: Change, filters: Filters, scatter: bool, rows: Spans, columns: Spans
) -> torch.Tensor:
    """The change of a convolution's output, (U, V, C_out), on the given spans of it."""
    height, width = filters.window.kernel
    cells = change.values.shape[:2] if scatter else (rows.length, columns.length)
    channels = filters.channels if scatter else change.values.shape[2]
    size = cells[0] * cells[1] * height * width * channels * change.values.element_size()
    step = -(-rows.count * PORTION // max(size, 1))
    way = filters.scatter if scatter else filters.gather
    if step >= rows.count:
        return way(change, rows, columns)
    found = []
    for begin in range(0, rows.count, step):
        end = min(begin + step, rows.count)
        first, last = (int(change.rows.offset[at]) for at in (begin, end))
        some = Change(change.values[first:last], part(change.rows, begin, end), change.columns)
        found.append(way(some, part(rows, begin, end), columns))
    return torch.cat(found)


def pick(values: torch.Tensor, rows: Spans, columns: Spans) -> torch.Tensor:
    """A map (H, W, C) as it is on some spans: (U, V, C)."""
    width, channels = values.shape[1:]
    index = (rows.place * width)[:, None] + columns.place
    found = values.view(-1, channels).index_select(0, index.flatten())
    return found.view(rows.length, columns.length, channels)


def spread(change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
    """A change on larger spans: zero where there is none."""
    if same(change.rows, rows) and same(change.columns, columns):
        return change.values
    found = change.values.new_zeros(rows.length, columns.length, change.values.shape[2])
    _place(found, change, rows, columns)
    return found


def _place(found: torch.Tensor, change: Change, rows: Spans, columns: Spans) -> None:
    """Add a change to values (U, V, C) on other spans; what lies outside of these is left out."""
    y, x = locate(change.rows, rows), locate(change.columns, columns)
    values = change.values
    if len(y) and int(y.min()) < 0:
        values, y = values[y >= 0], y[y >= 0]
    if len(x) and int(x.min()) < 0:
        values, x = values[:, x >= 0], x[x >= 0]
    found[y[:, None], x] += values


def pointwise(
    change: Change, before: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The change of what `function` makes of each position of a map; it takes (B, C, H, W)."""
    without = pick(before, change.rows, change.columns)
    shape = without.shape
    both = [without + change.values, without]
    maps = [function(values.view(-1, shape[2]).t()[None, :, :, None]) for values in both]
    after, was = (values[0, :, :, 0].t().reshape(shape) for values in maps)
    return after - was


def max_pool(
    change: Change,
    before: torch.Tensor,
    after: torch.Tensor,
    window: ops.Sliding,
    rows: Spans,
    columns: Spans,
) -> torch.Tensor:
    """The change of a max pool, given its input and output without it."""
    height, width, _ = before.shape
    seen_rows = windows(rows, window, 0, height)
    seen_columns = windows(columns, window, 1, width)
    canvas = pick(before, seen_rows, seen_columns)
    _place(canvas, change, seen_rows, seen_columns)
    down = _largest(canvas, 0, taps(seen_rows, rows, window, 0))
    both = _largest(down, 1, taps(seen_columns, columns, window, 1))
    return both.sub_(pick(after, rows, columns))


def _largest(values: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """The maximum along an axis over the elements in each row of `index`."""
    index = torch.where(index < 0, index.amax(1, keepdim=True), index)
    found = values.index_select(axis, index[:, 0])
    for tap in index.t()[1:]:
        torch.maximum(found, values.index_select(axis, tap), out=found)
    return found


def average_pool(
    change: Change, pool: ops.AveragePool, rows: Spans, columns: Spans
) -> torch.Tensor:
    """The change of an average pool."""
    down = _averages(pool.rows, change.rows, rows)
    across = _averages(pool.columns, change.columns, columns)
    length, _, channels = change.values.shape
    found = (down @ change.values.reshape(length, -1)).view(rows.length, -1, channels)
    return torch.matmul(across, found)


def _averages(matrix: torch.Tensor, below: Spans, above: Spans) -> torch.Tensor:
    """The part of `matrix` (out, in) that leads from one set of spans to the other."""
    alike = above.owner[:, None] == below.owner
    return torch.where(alike, matrix[above.place][:, below.place], 0)


def flatten(change: Change, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    """The change of a part of the map for each position: (T_y * T_x, h, w, C).

    The part is `rows` and `columns`, [start, stop), and holds all that changes.
    """
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    count = change.rows.count, change.columns.count
    y = change.rows.owner * (count[1] * height * width) + (change.rows.place - rows[0]) * width
    x = change.columns.owner * (height * width) + change.columns.place - columns[0]
    channels = change.values.shape[2]
    found = change.values.new_zeros(count[0] * count[1], height, width, channels)
    index = (y[:, None] + x).flatten()
    found.view(-1, channels)[index] = change.values.reshape(-1, channels)
    return found


def linear(change: Change, weight: torch.Tensor) -> torch.Tensor:
    """The change of a fully connected layer, (T_y, T_x, N): `weight` is (H, W, C, N).

    Only the part of the weights that meets a change of some position takes part.
    """
    (top, bottom), (left, right) = change.rows.hull, change.columns.hull
    count = change.rows.count * change.columns.count
    found = change.values.new_zeros(count, weight.shape[3])
    given = flatten(change, (top, bottom), (left, right))
    for row in range(bottom - top):
        some = weight[top + row, left:right].flatten(0, 1)
        found.addmm_(given[:, row].reshape(count, -1), some)
    return found.view(change.rows.count, change.columns.count, -1)


def add(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of a sum."""
    total = torch.stack([spread(change, rows, columns) for change in changes])
    return total.sum(0)


def concatenate(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of maps that lie side by side along the channels."""
    return torch.cat([spread(change, rows, columns) for change in changes], 2)
