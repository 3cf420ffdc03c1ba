"""Unpooling: the maxima go back to where the switches say they came from.

Zeiler & Fergus, section 2.1. Windows of overlapping pools can send two maxima to one place.
`accumulate` adds them, as the backward pass of max pooling does; `place` lets the later window
(in raster order) overwrite the earlier one. Both work on crops and are deterministic (on CUDA
under torch.use_deterministic_algorithms), which torch's max_unpool2d is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from zfscale.convnet.capture.operations import Sliding


def accumulate(values: torch.Tensor, switches: torch.Tensor, window: Sliding) -> torch.Tensor:
    """Spread `values` (n, C, h, w) by `switches`, uint8 of the same shape, adding collisions.

    The result (n, C, H, W) begins where the first window begins and ends where the last one
    ends: H = (h - 1) * stride + span. Nothing is taken from where the switch is no place of
    the window (`switches.ABSENT`).
    """
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
    some = values != 0
    for offset, part in _places(maps, values, window):
        part.copy_(torch.where(some & (switches == offset), values, part))
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
