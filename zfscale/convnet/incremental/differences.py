"""How the output of an operation changes with its input, computed only where it changes.

A convolution, a sum, an average pool and a fully connected layer are linear: the change of the
output follows from the change of the input alone, without the map and the biases. A
rectification, a normalisation and a max pool need the map too: they are computed with the change
and without it. Maps here are (H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn import functional

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.incremental.spans import (
    Change,
    Spans,
    locate,
    part,
    phase,
    phase_taps,
    product,
    same,
    select,
    taps,
    windows,
)

PORTION = 64 << 20
"""Bytes of products of a convolution that are held at a time: what a cache can keep."""


def pick(values: torch.Tensor, rows: Spans, columns: Spans) -> torch.Tensor:
    """A map (H, W, C) as it is on some spans: (U, V, C)."""
    return select(values, rows.place, columns.place)


def spread(change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
    """A change on larger spans: zero where there is none."""
    if same(change.rows, rows) and same(change.columns, columns):
        return change.values
    values = change.values.new_zeros(rows.length, columns.length, change.values.shape[2])
    _add_change(values, change, rows, columns)
    return values


def _add_change(target: torch.Tensor, change: Change, rows: Spans, columns: Spans) -> None:
    """Add a change to `target` (U, V, C) on other spans; what lies outside of these is left out."""
    y, x = locate(change.rows, rows), locate(change.columns, columns)
    values = change.values
    if len(y) and int(y.min()) < 0:
        values, y = values[y >= 0], y[y >= 0]
    if len(x) and int(x.min()) < 0:
        values, x = values[:, x >= 0], x[x >= 0]
    index = (y[:, None] * columns.length + x).flatten()
    channels = target.shape[2]
    target.view(-1, channels).index_add_(0, index, values.reshape(-1, channels))


def pointwise(
    change: Change,
    before: torch.Tensor,
    after: torch.Tensor | None,
    function: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The change of what `function` makes of each position of a map.

    `function` takes maps (B, C, H, W), and may work in place. `after` is what it makes of the map
    without a change: None where computing that again takes less time than fetching it.
    """
    without = pick(before, change.rows, change.columns)
    changed = _apply(function, without + change.values)
    if after is None:
        return changed.sub_(_apply(function, without))
    return changed.sub_(pick(after, change.rows, change.columns))


def _apply(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """A function of maps (B, C, H, W) on values (U, V, C): one map, channels last."""
    maps = function(values.flatten(0, 1).t()[None, :, :, None])
    return maps[0, :, :, 0].t().reshape(values.shape)


def max_pool(
    change: Change,
    before: torch.Tensor,
    after: torch.Tensor,
    window: ops.Sliding,
    rectified: bool,
    rows: Spans,
    columns: Spans,
) -> torch.Tensor:
    """The change of a max pool, `rectified` or not, given its input and output without it."""
    # The windows of the changed outputs hold more than what changed: the map is laid out over all
    # of them and the change added. A maximum over rows, then over columns, takes fewer comparisons.
    height, width, _ = before.shape
    input_rows = windows(rows, window, 0, height)
    input_columns = windows(columns, window, 1, width)
    inputs = pick(before, input_rows, input_columns)
    _add_change(inputs, change, input_rows, input_columns)
    down = _largest(inputs, 0, taps(input_rows, rows, window, 0))
    both = _largest(down, 1, taps(input_columns, columns, window, 1))
    if rectified:
        both.clamp_min_(0)
    return both.sub_(pick(after, rows, columns))


def _largest(values: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """The maximum along an axis over the elements in each row of `index`."""
    # An absent element is replaced by one that is there: it changes no maximum.
    index = torch.where(index < 0, index.amax(1, keepdim=True), index)
    largest = values.index_select(axis, index[:, 0])
    for tap in index.t()[1:]:
        torch.maximum(largest, values.index_select(axis, tap), out=largest)
    return largest


def average_pool(
    change: Change, pool: ops.AveragePool, rows: Spans, columns: Spans
) -> torch.Tensor:
    """The change of an average pool: averages down the columns of the map, then along its rows."""
    height, width, channels = change.values.shape
    index, shares = _averages(pool.rows, change.rows, rows)
    down = _weighted_sums(change.values.reshape(height, width * channels), index, shares)
    index, shares = _averages(pool.columns, change.columns, columns)
    starts = torch.arange(rows.length, device=index.device)[:, None, None] * width
    index, shares = (starts + index).flatten(0, 1), shares.repeat(rows.length, 1)
    both = _weighted_sums(down.view(-1, channels), index, shares)
    return both.view(rows.length, columns.length, channels)


def _averages(
    matrix: torch.Tensor, below: Spans, above: Spans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which elements of `below` an average pool along one axis adds up, and their shares.

    Both are (U_above, n), by the pool's `matrix` (out, in). What is absent has no share.
    """
    used = matrix != 0
    reach = torch.arange(int(used.sum(1).max()), device=matrix.device)
    place = used.int().argmax(1)[above.place, None] + reach
    index = below.find(above.owner[:, None], place)
    shares = matrix[above.place[:, None], place.clamp(max=matrix.shape[1] - 1)]
    return index.clamp(min=0), shares.where(index >= 0, 0)


def _weighted_sums(
    values: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sums of rows of `values` (A, N) by index and weight (B, n): (B, N)."""
    return functional.embedding_bag(index, values, mode="sum", per_sample_weights=weights)


def flatten(change: Change, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    """The change of a part of the map for each position: (T_y * T_x, h, w, C).

    The part is `rows` and `columns`, [start, stop), and holds all that changes.
    """
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    count = change.rows.count, change.columns.count
    y = change.rows.owner * (count[1] * height * width) + (change.rows.place - rows[0]) * width
    x = change.columns.owner * (height * width) + change.columns.place - columns[0]
    channels = change.values.shape[2]
    flat = change.values.new_zeros(count[0] * count[1], height, width, channels)
    index = (y[:, None] + x).flatten()
    flat.view(-1, channels).index_add_(0, index, change.values.reshape(-1, channels))
    return flat


def linear(change: Change, weight: torch.Tensor) -> torch.Tensor:
    """The change of a fully connected layer, (T_y, T_x, N): `weight` is (H, W, C, N).

    Row by row of the map, the positions that change something in that row are multiplied with the
    part of the weights that belongs to the changed columns of it.
    """
    (top, bottom), (left, right) = change.rows.hull, change.columns.hull
    down, across = change.rows.count, change.columns.count
    output = change.values.new_zeros(down, across, weight.shape[3])
    flat = flatten(change, (top, bottom), (left, right))
    flat = flat.view(down, across, bottom - top, (right - left) * weight.shape[2])
    for row in range(top, bottom):
        changing = ((change.rows.start <= row) & (row < change.rows.stop)).nonzero()[:, 0]
        if not len(changing):
            continue
        positions = slice(int(changing[0]), int(changing[-1]) + 1)
        inputs = flat[positions, :, row - top].flatten(0, 1)
        output[positions].flatten(0, 1).addmm_(inputs, weight[row, left:right].flatten(0, 1))
    return output


def add(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of a sum."""
    total = spread(changes[0], rows, columns)
    for change in changes[1:]:
        total = total + spread(change, rows, columns)
    return total


def concatenate(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of maps that lie side by side along the channels."""
    return torch.cat([spread(change, rows, columns) for change in changes], 2)


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
        self.channels = convolution.weight.shape[0]
        self._weight = convolution.weight

    @cached_property
    def _grouped(self) -> torch.Tensor:
        """The weights as (groups, C_out / groups, C_in / groups, kh, kw)."""
        outputs, *rest = self._weight.shape
        return self._weight.view(self.groups, outputs // self.groups, *rest)

    @cached_property
    def _gathered(self) -> torch.Tensor:
        """The weights as (groups, kh * kw * C_in / groups, C_out / groups)."""
        return self._grouped.permute(0, 3, 4, 2, 1).flatten(1, 3).contiguous()

    @cached_property
    def _phases(self) -> tuple[_Phase, ...]:
        """The filters by phase of the stride, where any of their taps is in it."""
        # Outputs of a strided window meet each input with those taps only whose distance to it is
        # a multiple of the stride. Inputs and taps are sorted by that remainder, so that every
        # product that is computed is used.
        weight = self._grouped.permute(0, 2, 3, 4, 1)
        phases = []
        for y in range(self.window.stride[0]):
            for x in range(self.window.stride[1]):
                rows, columns = phase_taps(self.window, 0, y), phase_taps(self.window, 1, x)
                if rows and columns:
                    part_of_it = weight[:, :, rows][:, :, :, columns].flatten(2).contiguous()
                    phases.append(_Phase(y, x, (len(rows), len(columns)), part_of_it))
        return tuple(phases)

    def scatter(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The change of the output on its spans, (U, V, C_out)."""
        # One matrix product a phase: all inputs of it times all its taps, a row of `products` for
        # each pair. `index` then lists for every output the rows that belong to it, and
        # embedding_bag is torch's sum of rows by index. What is absent points at a row of zeros.
        inputs_by_phase: list[tuple[torch.Tensor, ...]] = []
        indices: list[torch.Tensor] = []
        count = 0  # products of the phases before, each a row of C_out / groups numbers
        for one in self._phases:
            y, from_y = phase(change.rows, rows, self.window, 0, one.y)
            x, from_x = phase(change.columns, columns, self.window, 1, one.x)
            inputs = change.values
            if len(y) < inputs.shape[0] or len(x) < inputs.shape[1]:
                inputs = select(inputs, y, x)
            inputs_by_phase.append(inputs.reshape(-1, inputs.shape[2]).chunk(self.groups, 1))
            down, across = one.taps
            tap_y = torch.arange(down, device=y.device) * across + count
            tap_x = torch.arange(across, device=x.device)
            at_y = from_y * (len(x) * down * across) + tap_y
            indices.append(product(at_y, from_x * (down * across) + tap_x))
            count += len(y) * len(x) * down * across
        index = _or_else(torch.cat(indices, 1), count)
        products = change.values.new_empty(count + 1, self.channels // self.groups)
        products[count] = 0
        sums = []
        for group, inputs_of_group in enumerate(zip(*inputs_by_phase, strict=True)):
            self._multiply(group, inputs_of_group, products)
            sums.append(functional.embedding_bag(index, products, mode="sum"))
        output = sums[0] if self.groups == 1 else torch.cat(sums, 1)
        return output.view(rows.length, columns.length, self.channels)

    def _multiply(
        self, group: int, inputs: tuple[torch.Tensor, ...], products: torch.Tensor
    ) -> None:
        """Fill `products` with those of each phase's inputs, (cells, C / groups), and its taps."""
        begin = 0
        for one, cells in zip(self._phases, inputs, strict=True):
            weight = one.weight[group]
            end = begin + len(cells) * one.taps[0] * one.taps[1]
            torch.mm(cells, weight, out=products[begin:end].view(len(cells), weight.shape[1]))
            begin = end

    def gather(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The same, output by output."""
        # As im2col, along one axis at a time: first the taps of each column side by side, then the
        # taps of each row of these. What is absent points at a row or column of zeros.
        height, width, channels = change.values.shape
        kernel = self.window.kernel
        table = functional.pad(change.values, (0, 0, 0, 1, 0, 1))
        from_x = _or_else(taps(change.columns, columns, self.window, 1), width)
        along = select(table, torch.arange(height + 1, device=from_x.device), from_x.flatten())
        along = along.view(-1, kernel[1] * channels)
        from_y = _or_else(taps(change.rows, rows, self.window, 0), height)
        here = torch.arange(columns.length, device=from_x.device)
        index = from_y[:, None, :] * columns.length + here[:, None]
        inputs = along.index_select(0, index.flatten())
        window, each = kernel[0] * kernel[1], channels // self.groups
        inputs = inputs.view(-1, window, self.groups, each)
        inputs = inputs.permute(2, 0, 1, 3).reshape(self.groups, len(inputs), window * each)
        output = torch.bmm(inputs, self._gathered).transpose(0, 1)
        return output.reshape(rows.length, columns.length, self.channels)


def _or_else(index: torch.Tensor, absent: int) -> torch.Tensor:
    """An index with `absent` where it is ABSENT."""
    return index.masked_fill_(index < 0, absent)


def convolve(
    change: Change, filters: Filters, scatter: bool, rows: Spans, columns: Spans
) -> torch.Tensor:
    """The change of a convolution's output, (U, V, C_out), on the given spans of it."""
    height, width = filters.window.kernel
    cells = change.values.shape[:2] if scatter else (rows.length, columns.length)
    stride = filters.window.stride[0] * filters.window.stride[1] if scatter else 1
    channels = filters.channels if scatter else change.values.shape[2]
    size = cells[0] * cells[1] * height * width // stride * channels * change.values.element_size()
    # A few rows of positions at a time, so that the products stay in a cache.
    step = -(-rows.count * PORTION // max(size, 1))
    way = filters.scatter if scatter else filters.gather
    output = change.values.new_empty(rows.length, columns.length, filters.channels)
    for begin in range(0, rows.count, step):
        end = min(begin + step, rows.count)
        first, last = (int(change.rows.offset[at]) for at in (begin, end))
        below = Change(change.values[first:last], part(change.rows, begin, end), change.columns)
        above = part(rows, begin, end)
        output[int(rows.offset[begin]) : int(rows.offset[end])] = way(below, above, columns)
    return output
