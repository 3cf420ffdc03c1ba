"""Switches: where each max pool found its maximum (Zeiler & Fergus, section 2.1).

A switch is the offset inside its window, ky * kw + kx, as uint8. The record of a winner is the
crop that its receptive field needs; where that hangs over the map it holds ABSENT.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from zfscale.convnet.capture.geometry import Window
from zfscale.convnet.capture.operations import Pair

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
