"""The primitive operations that a network is made of, as frozen records.

A record holds what geometry and deconvolution need, and nothing else: no biases, for
deconvolution has no use for them. Shapes are without the batch; pairs are (y, x).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a window slides over a map. `padding` is what lies before the first row and column;
    what lies behind the last follows from the shapes.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def span(self) -> Pair:
        """Extent of one window, holes of the dilation included."""
        y, x = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return y, x


@dataclass(frozen=True, slots=True)
class Input:
    """The normalised image."""


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """`weight` has shape (C_out, C_in / groups, kh, kw)."""

    weight: torch.Tensor
    window: Sliding
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class BatchNorm:
    """The linear part of a batch normalisation in evaluation mode: a factor `scale` (C,)."""

    scale: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rectification:
    """max(x, 0)."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A nonlinear function of each activation alone, other than rectification."""

    name: str


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Local response (contrast) normalisation across the features at one position."""


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Maximum of each window; in ceil mode the last one may hang over the border."""

    window: Sliding
    ceil_mode: bool


@dataclass(frozen=True, slots=True, eq=False)
class AveragePool:
    """An average over windows, written as `rows @ map @ columns.T`.

    `rows` has shape (H_out, H_in), `columns` (W_out, W_in). `window` is None where the windows
    are not all alike (adaptive pooling).
    """

    rows: torch.Tensor
    columns: torch.Tensor
    window: Sliding | None


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`weight` has shape (C_out, C_in)."""

    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class Flatten:
    """(C, H, W) becomes (C * H * W,)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """An operation that changes nothing at evaluation: dropout, identity, contiguous."""


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of inputs of one shape."""


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Inputs side by side along the channels."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Anything else. The network runs, but geometry and deconvolution cannot pass."""

    name: str


Operation = (
    Input
    | Convolution
    | BatchNorm
    | Rectification
    | Pointwise
    | Normalisation
    | MaxPool
    | AveragePool
    | Linear
    | Flatten
    | Identity
    | Add
    | Concatenation
    | Opaque
)


def averages(
    size: int, out: int, window: Sliding, axis: int, include_padding: bool
) -> torch.Tensor:
    """The matrix (out, size) of an average pool along one axis: 0 for rows, 1 for columns."""
    matrix = torch.zeros(out, size)
    padding = window.padding[axis]
    for index in range(out):
        start = index * window.stride[axis] - padding
        # In ceil mode the last window may hang over the padding; torch does not count that.
        stop = min(start + window.kernel[axis], size + padding)
        inside = slice(max(start, 0), min(stop, size))
        count = stop - start if include_padding else inside.stop - inside.start
        matrix[index, inside] = 1.0 / count
    return matrix


def adaptive_averages(size: int, out: int) -> torch.Tensor:
    """The matrix (out, size) of an adaptive average pool along one axis."""
    matrix = torch.zeros(out, size)
    for index in range(out):
        start, stop = index * size // out, -(-(index + 1) * size // out)
        matrix[index, start:stop] = 1.0 / (stop - start)
    return matrix
