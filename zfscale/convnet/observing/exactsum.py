"""Exact sums of floating-point numbers: in any order and grouping the same bits.

Floating-point addition is not associative, so a mean over a million images would depend on
how they were cut into tasks. Here each number is split into pieces that are multiples of a
fixed power of two (its bin); the pieces of one bin add without rounding. This is the binned
summation of Demmel & Nguyen, "Parallel Reproducible Summation" (IEEE ToC 2015), kept simple
by float32 inputs. Knows numpy only.
"""

from __future__ import annotations

import math
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
    # The bin of the largest number is taken off all of them, then that of the largest remainder,
    # and so on. Truncation at a multiple of a power of two, and the subtraction, are exact.
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

    def whole(self, shape: tuple[int, ...], lowest: int) -> NDArray[np.object_]:
        """The sums as Python's integers, without rounding: multiples of 2**(24 lowest)."""
        total = np.zeros(shape, object)
        for bin_, values in self.bins.items():
            multiples = (values / 2.0 ** (BITS * bin_)).astype(np.int64)
            total += multiples.astype(object) << BITS * (bin_ - lowest)
        return total


def standard_deviation(
    sums: ExactSum, squares: ExactSum, count: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Population standard deviation of `count` numbers, from their sums and sums of squares.

    The mean of squares less the square of the mean cancels where numbers are large and close to
    each other, so it is computed in whole numbers and rounded once, at the end. Zeros for no
    numbers.
    """
    lowest = min([*sums.bins, *(bin_ // 2 for bin_ in squares.bins)], default=0)
    total, total_squares = sums.whole(shape, lowest), squares.whole(shape, 2 * lowest)
    # sqrt(n * sum(x**2) - sum(x)**2) / n, in units of 2**(24 lowest).
    spread = count * total_squares - total * total
    std = [_root(int(number), max(count, 1), BITS * lowest) for number in spread.flat]
    return np.array(std, np.float64).reshape(shape)


def _root(number: int, divisor: int, exponent: int) -> float:
    """sqrt(number) / divisor * 2**exponent, rounded once."""
    # The root has at least 64 bits more than the divisor. One more bit tells that it is not exact:
    # that is all that the rounding of the quotient needs of what is left out.
    shift = max(0, 64 + divisor.bit_length() - number.bit_length() // 2)
    square = number << 2 * shift
    root = math.isqrt(square)
    root = 2 * root + (root * root != square)
    divisor <<= shift + 1
    return (root << exponent) / divisor if exponent > 0 else root / (divisor << -exponent)
