"""Exact sums of floating-point numbers: any order, any grouping, the same bits.

Floating-point addition is not associative, so a mean over a million images would depend on
how they were cut into tasks. Here each number is split into pieces that are multiples of a
fixed power of two (its bin); the pieces of one bin add without rounding. This is the binned
summation of Demmel & Nguyen, "Parallel Reproducible Summation" (IEEE ToC 2015), kept simple
by float32 inputs. Knows numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 24
"""Width of a bin. 53 - 24 bits are left for carries: 2**29 additions stay exact."""

Pieces = Mapping[int, NDArray[np.float64]]


def split(values: NDArray[Any]) -> dict[int, NDArray[np.float64]]:
    """Cut finite numbers into pieces: bin j holds multiples of 2**(24 j), all of one shape.

    The pieces of a number depend on that number alone, and they add up to it exactly.
    Takes float32 numbers, or their squares in float64.
    """
    rest = np.array(values, dtype=np.float64)
    pieces = {}
    while (largest := max(rest.max(initial=0), -rest.min(initial=0))) > 0:
        bin_ = (int(np.frexp(largest)[1]) - 1) // BITS
        unit = 2.0 ** (BITS * bin_)
        piece = rest / unit
        np.trunc(piece, out=piece)
        piece *= unit
        rest -= piece
        pieces[bin_] = piece
    return pieces


class ExactSum:
    """A sum of arrays of one shape, element by element, without rounding.

    Equal sets of added arrays give equal `bins`, in whatever order they came.
    """

    def __init__(self) -> None:
        self.bins: dict[int, NDArray[np.float64]] = {}

    def add(self, pieces: Pieces) -> None:
        """Add pieces from `split`, or the bins of another sum."""
        for bin_, piece in pieces.items():
            self.bins[bin_] = self.bins[bin_] + piece if bin_ in self.bins else piece

    def value(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The sums as float64 of the given shape, rounded only here; zeros if nothing was added."""
        total = np.zeros(shape)
        for bin_ in sorted(self.bins):
            total += self.bins[bin_]
        return total
