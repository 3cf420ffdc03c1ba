"""The change of a convolution's output, computed from the change of its input.

Convolution is linear, so the map itself and the biases take no part.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn import functional

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.incremental.spans import (
    Change,
    Spans,
    part,
    phase,
    phase_taps,
    product,
    select,
    taps,
)

PORTION = 64 << 20
"""Bytes of products of a convolution that are held at a time: what a cache can keep."""


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
        weight = self._grouped.permute(0, 2, 3, 4, 1)
        found = []
        for y in range(self.window.stride[0]):
            for x in range(self.window.stride[1]):
                rows, columns = phase_taps(self.window, 0, y), phase_taps(self.window, 1, x)
                if rows and columns:
                    some = weight[:, :, rows][:, :, :, columns].flatten(2).contiguous()
                    found.append(_Phase(y, x, (len(rows), len(columns)), some))
        return tuple(found)

    def scatter(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The change of the output on its spans, (U, V, C_out)."""
        met: list[tuple[torch.Tensor, ...]] = []
        indices: list[torch.Tensor] = []
        count = 0  # products of the phases before, each a row of C_out / groups numbers
        for one in self._phases:
            y, from_y = phase(change.rows, rows, self.window, 0, one.y)
            x, from_x = phase(change.columns, columns, self.window, 1, one.x)
            inputs = change.values
            if len(y) < inputs.shape[0] or len(x) < inputs.shape[1]:
                inputs = select(inputs, y, x)
            met.append(inputs.reshape(-1, inputs.shape[2]).chunk(self.groups, 1))
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
        for group, inputs_of_phases in enumerate(zip(*met, strict=True)):
            self._multiply(group, inputs_of_phases, products)
            sums.append(functional.embedding_bag(index, products, mode="sum"))
        found = sums[0] if self.groups == 1 else torch.cat(sums, 1)
        return found.view(rows.length, columns.length, self.channels)

    def _multiply(
        self, group: int, inputs: tuple[torch.Tensor, ...], products: torch.Tensor
    ) -> None:
        """Fill `products` with those of each phase's inputs, (cells, C / groups), and its taps."""
        begin = 0
        for one, some in zip(self._phases, inputs, strict=True):
            weight = one.weight[group]
            end = begin + len(some) * one.taps[0] * one.taps[1]
            torch.mm(some, weight, out=products[begin:end].view(len(some), weight.shape[1]))
            begin = end

    def gather(self, change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
        """The same, output by output: inputs are gathered along the rows, then down the columns."""
        height, width, channels = change.values.shape
        kernel = self.window.kernel
        table = functional.pad(change.values, (0, 0, 0, 1, 0, 1))
        from_x = _or_else(taps(change.columns, columns, self.window, 1), width)
        along = select(table, torch.arange(height + 1, device=from_x.device), from_x.flatten())
        along = along.view(-1, kernel[1] * channels)
        from_y = _or_else(taps(change.rows, rows, self.window, 0), height)
        here = torch.arange(columns.length, device=from_x.device)
        index = from_y[:, None, :] * columns.length + here[:, None]
        seen = along.index_select(0, index.flatten())
        window, each = kernel[0] * kernel[1], channels // self.groups
        seen = seen.view(-1, window, self.groups, each)
        seen = seen.permute(2, 0, 1, 3).reshape(self.groups, len(seen), window * each)
        found = torch.bmm(seen, self._gathered).transpose(0, 1)
        return found.reshape(rows.length, columns.length, self.channels)


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
    step = -(-rows.count * PORTION // max(size, 1))
    way = filters.scatter if scatter else filters.gather
    found = change.values.new_empty(rows.length, columns.length, filters.channels)
    for begin in range(0, rows.count, step):
        end = min(begin + step, rows.count)
        first, last = (int(change.rows.offset[at]) for at in (begin, end))
        some = Change(change.values[first:last], part(change.rows, begin, end), change.columns)
        above = part(rows, begin, end)
        found[int(rows.offset[begin]) : int(rows.offset[end])] = way(some, above, columns)
    return found
