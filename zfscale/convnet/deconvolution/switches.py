"""Switches: where each max pool found its maximum; and unpooling, which puts values back there.

Zeiler & Fergus, section 2.1. A switch is the offset inside its window, ky * kw + kx, as uint8.
The record of a winner is the crop that its receptive field needs; where that hangs over the map
it holds ABSENT.

Windows of overlapping pools can send two maxima to one place. `accumulate` adds them, as the
backward pass of max pooling does; `place` lets the later window (in raster order) overwrite the
earlier one. Both work on crops and are deterministic (on CUDA under
torch.use_deterministic_algorithms), which torch's max_unpool2d is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from zfscale.convnet.capture.geometry import Window
from zfscale.convnet.capture.operations import Pair, Sliding

ABSENT = 255
"""The switch where there is no window: outside the map."""


def find(
    maps: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> torch.Tensor:
    """The switches, uint8 (B, C, h, w), of a max pool over `maps` (B, C, H, W).

    Equal maxima go to the first in raster order, as in torch. A window has at most 255 places.
    """
    _, flat = functional.max_pool2d(
        maps, kernel, stride, padding, dilation, ceil_mode, return_indices=True
    )
    rows = torch.arange(flat.shape[2], device=maps.device) * stride[0] - padding[0]
    columns = torch.arange(flat.shape[3], device=maps.device) * stride[1] - padding[1]
    ky = (flat // maps.shape[3] - rows[:, None]) // dilation[0]
    kx = (flat % maps.shape[3] - columns) // dilation[1]
    return (ky * kernel[1] + kx).to(torch.uint8)


def crop(switches: NDArray[np.uint8], window: Window, y: int, x: int) -> NDArray[np.uint8]:
    """What the unit at (y, x) needs of `switches` (C, H, W): (C, *window.size)."""
    (top, left), (height, width) = window.origin(y, x), window.size
    record = np.full((len(switches), height, width), ABSENT, np.uint8)
    inside = switches[:, max(top, 0) : top + height, max(left, 0) : left + width]
    first_row, first_column = max(-top, 0), max(-left, 0)
    record[
        :,
        first_row : first_row + inside.shape[1],
        first_column : first_column + inside.shape[2],
    ] = inside
    return record


def accumulate(values: torch.Tensor, switches: torch.Tensor, window: Sliding) -> torch.Tensor:
    """Spread `values` (n, C, h, w) by `switches`, uint8 of the same shape, adding collisions.

    The result (n, C, H, W) begins where the first window begins and ends where the last one
    ends: H = (h - 1) * stride + span. Nothing is taken from where the switch is no place of
    the window (ABSENT).
    """
    # Each value is added at one flat index of its image's maps, computed from its window's first
    # position and its switch: a single scatter_add.
    maps = _empty(values, window)
    n, channels, _, width = maps.shape
    # All is laid out as in memory, channels last: one index for each place and channel.
    values, switches = (
        t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        for t in (values, switches)
    )
    places = window.kernel[0] * window.kernel[1]
    values = torch.where(switches < places, values, 0)
    switches = switches.clamp(max=places - 1)
    first = _first_of_window(values.shape[1:3], width, window).to(values.device)
    channel = torch.arange(channels, device=values.device)
    (down, right), columns = window.dilation, window.kernel[1]
    # Place ky * columns + kx lies ky * down rows and kx * right columns behind the first.
    step = switches.div(columns, rounding_mode="floor").long() * (down * width - columns * right)
    index = (step.add_(switches, alpha=right).add_(first)).mul_(channels).add_(channel)
    flat = maps.permute(0, 2, 3, 1).view(n, -1)
    flat.scatter_add_(1, index.view(n, -1), values.view(n, -1))
    return maps


def _first_of_window(count: Sequence[int], width: int, window: Sliding) -> torch.Tensor:
    """Position, in a map of the given width laid out row by row, where each window begins."""
    rows = torch.arange(count[0])[:, None] * window.stride[0] * width
    return (rows + torch.arange(count[1]) * window.stride[1])[:, :, None]


def place(values: torch.Tensor, switches: torch.Tensor, window: Sliding) -> torch.Tensor:
    """As `accumulate`, but of two values for one place the one of the later window stays.

    Zeros are not placed, so that windows without signal, in the crop or beyond it, do not count.
    """
    maps = _empty(values, window)
    # One view of the maps for each place of the window, strided so that it holds that place of all
    # windows: what is written into it is written for all of them at once.
    has_signal = values != 0
    for offset, part in _places(maps, values, window):
        part.copy_(torch.where(has_signal & (switches == offset), values, part))
    return maps


def _empty(values: torch.Tensor, window: Sliding) -> torch.Tensor:
    size = [
        (count - 1) * stride + span
        for count, stride, span in zip(values.shape[2:], window.stride, window.span, strict=True)
    ]
    n, channels = values.shape[:2]
    return values.new_zeros(n, *size, channels).permute(0, 3, 1, 2)


def _places(
    maps: torch.Tensor, values: torch.Tensor, window: Sliding
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each offset in the window, and the view of `maps` that it covers in all windows.

    The last offset comes first: of all windows over one position, it belongs to the earliest.
    """
    rows, columns = window.kernel
    for offset in reversed(range(rows * columns)):
        y, x = offset // columns * window.dilation[0], offset % columns * window.dilation[1]
        yield (
            offset,
            maps[
                :,
                :,
                y : y + (values.shape[2] - 1) * window.stride[0] + 1 : window.stride[0],
                x : x + (values.shape[3] - 1) * window.stride[1] + 1 : window.stride[1],
            ],
        )
