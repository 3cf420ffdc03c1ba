"""Filtering with the transposed weights: a convolution run backwards, on crops.

The same numbers as torch's conv_transpose2d without bias or padding, by the kernels that are
fastest for the shapes that deconvolution meets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from zfscale.convnet.capture.operations import Convolution, Pair

Filter = Callable[[torch.Tensor], torch.Tensor]

FEW_CHANNELS = 16
"""Fewer output channels than this leave most of a vector register of the CPU idle."""


def transposed(convolution: Convolution) -> Filter:
    """A function from signals (n, C_out, h, w) to (n, C_in, (h - 1) * stride + span, ...)."""
    window = convolution.window
    weight = convolution.weight.float().contiguous(memory_format=torch.channels_last)
    plain = convolution.groups == 1 and window.dilation == (1, 1)
    if plain and window.stride != (1, 1) and weight.shape[1] < FEW_CHANNELS:
        spread = _by_phases(weight, window.stride)
    else:

        def spread(signal: torch.Tensor) -> torch.Tensor:
            return functional.conv_transpose2d(
                signal,
                weight,
                stride=window.stride,
                groups=convolution.groups,
                dilation=window.dilation,
            )

    def run(signal: torch.Tensor) -> torch.Tensor:
        if plain and signal.shape[2:] == (1, 1):
            product = signal.flatten(1) @ weight.permute(0, 2, 3, 1).flatten(1)
            return product.view(len(signal), *window.kernel, -1).permute(0, 3, 1, 2)
        return spread(signal)

    return run


def _by_phases(weight: torch.Tensor, stride: Pair) -> Filter:
    """Transposed filtering as one plain convolution, its channels then dealt out over pixels.

    Output row i * stride + phase depends only on the weights whose row has that phase, and is a
    plain convolution of the signal with them (the sub-pixel convolution of Shi et al., CVPR
    2016). The pixel layer has three channels; with its phases as channels too, registers fill.
    """
    channels = weight.shape[1]
    rows, columns = (-(-k // s) for k, s in zip(weight.shape[2:], stride, strict=True))
    phases = weight.new_zeros(stride[0], stride[1], channels, len(weight), rows, columns)
    for y in range(stride[0]):
        for x in range(stride[1]):
            # Flipped, since row m of the weights meets row i - m of the signal.
            part = weight[:, :, y :: stride[0], x :: stride[1]].flip(2, 3).transpose(0, 1)
            phases[y, x, :, :, rows - part.shape[2] :, columns - part.shape[3] :] = part
    kernel = phases.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    size = weight.shape[2:]

    def run(signal: torch.Tensor) -> torch.Tensor:
        mixed = functional.conv2d(signal, kernel, padding=(rows - 1, columns - 1))
        n, _, height, width = mixed.shape
        dealt = mixed.view(n, *stride, channels, height, width).permute(0, 3, 4, 1, 5, 2)
        pixels = dealt.reshape(n, channels, height * stride[0], width * stride[1])
        ends = [(s - 1) * t + k for s, t, k in zip(signal.shape[2:], stride, size, strict=True)]
        return pixels[:, :, : ends[0], : ends[1]]

    return run
