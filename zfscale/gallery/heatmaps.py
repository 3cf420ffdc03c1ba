"""Maps of measured values and of classes as pictures with legends: one pixel a position.

Knows the maps of an image, no files and no HTML.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import colours, names
from zfscale.gallery.occluded import Grid
from zfscale.gallery.site import class_name


@dataclass(frozen=True, slots=True)
class MapRange:
    """What a map of a measured value spans; `before` is the value without the occluder.

    Colours run from `low` to `high`, the least and the greatest of all these values. `least` is
    the smallest value under the occluder, at row and column `at`, the first in raster order.
    """

    low: float
    high: float
    before: float | None
    least: float
    at: tuple[int, int] | None

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0..1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def text(self, value: float) -> str:
        """A value, exact enough to be told apart from others of this map."""
        return names.between(value, self.low, self.high)


def map_range(values: Grid, before: float | None) -> MapRange:
    """What a map spans. Without values it has no place, and the ends are `before` or 0."""
    measured: list[float] = values[~np.isnan(values)].tolist()
    ends = measured if before is None else [*measured, before]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if not measured:
        return MapRange(low, high, before, math.nan, None)
    row, column = divmod(int(np.nanargmin(values)), values.shape[1])
    return MapRange(low, high, before, float(values[row, column]), (row, column))


@dataclass(frozen=True, slots=True)
class Class:
    """A class of a map: its name and colour, and its share of the positions (0..1)."""

    name: str
    colour: str
    share: float
    target: bool = False


@dataclass(frozen=True)
class ClassMap:
    """A map of the most probable class by its number.

    The class that was followed has the first colour; the others have theirs by how often they
    come. Those beyond the colours share one.
    """

    values: Grid
    target: int | None
    names: Sequence[str] | None

    @cached_property
    def order(self) -> list[int]:
        """The classes of the map in the order of the colours, first the one that was followed."""
        counts = self._counts
        others = sorted(counts.keys() - {self.target}, key=lambda label: (-counts[label], label))
        return others if self.target is None else [self.target, *others]

    @property
    def legend(self) -> list[Class]:
        """The classes with a colour of their own, then all others as one."""
        total = max(1, sum(self._counts.values()))
        own = [
            Class(self.name(label), colour, self._counts[label] / total, label == self.target)
            for label, colour in zip(self.order, colours.CLASSES, strict=False)
        ]
        rest = self.order[len(own) :]
        if not rest:
            return own
        share = sum(self._counts[label] for label in rest) / total
        many = "1 other class" if len(rest) == 1 else f"{len(rest)} other classes"
        return [*own, Class(many, colours.OTHER, share)]

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        return class_name(self.names, label) or str(label)

    def picture(self) -> NDArray[np.uint8]:
        """The map as pixels (rows, columns, 3)."""
        shown = np.empty((*self.values.shape, 3), np.uint8)
        shown[:] = colours.rgb(colours.OTHER)
        shown[np.isnan(self.values)] = colours.rgb(colours.MISSING)
        for label, colour in zip(self.order, colours.CLASSES, strict=False):
            shown[self.values == label] = colours.rgb(colour)
        return shown

    @cached_property
    def _counts(self) -> Counter[int]:
        return Counter(self.values[~np.isnan(self.values)].astype(int).tolist())
