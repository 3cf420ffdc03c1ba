"""The change of a convolution's output, computed from the change of its input.

Convolution is linear, so the map itself and the biases take no part.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn import functional

from zfscale.convnet import operations as ops
from zfscale.convnet.spans import Change, Spans, part, phase, phase_taps, product, select, taps

PORTION = 16 << 20
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
        total: torch.Tensor | None = None
        for one in self._phases:
            y, from_y = phase(change.rows, rows, self.window, 0, one.y)
            x, from_x = phase(change.columns, columns, self.window, 1, one.x)
            inputs = change.values
            if len(y) < inputs.shape[0] or len(x) < inputs.shape[1]:
                inputs = select(inputs, y, x)
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
        each = index.shape[1] * (channels // self.groups)
        seen = seen.permute(2, 0, 1, 3).reshape(self.groups, len(index), each)
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
    found = change.values.new_empty(rows.length, columns.length, filters.channels)
    for begin in range(0, rows.count, step):
        end = min(begin + step, rows.count)
        first, last = (int(change.rows.offset[at]) for at in (begin, end))
        some = Change(change.values[first:last], part(change.rows, begin, end), change.columns)
        above = part(rows, begin, end)
        found[int(rows.offset[begin]) : int(rows.offset[end])] = way(some, above, columns)
    return found
