"""Boxes of parts in images, and where they lie in the network's input.

Plain geometry: knows neither how boxes are stored nor what is done with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from zfscale.records import Box, Preprocessing

RANDOM_BOXES = "random"
"""What the results of random boxes are listed under, in place of a part: no part may be called
so.
"""


@dataclass(frozen=True, slots=True)
class PartBox:
    """A part of what an image shows: x0 <= x < x1, y0 <= y < y1, in pixels of the stored image.

    It may reach over the border of the image. `discriminative` says that the class is known to
    rest on it.
    """

    part: str
    x0: float
    y0: float
    x1: float
    y1: float
    discriminative: bool = False


def in_input(box: PartBox, width: int, height: int, preprocessing: Preprocessing) -> Box | None:
    """The pixels of the network's input that show any of `box`, or None where it is cropped away.

    `width` and `height` are those of the stored image. The image is resized and cropped as
    `zfscale.collection.decode` does it; a filter of the resizing may spread a part a little beyond
    its box.
    """
    crop_height, crop_width = preprocessing.crop
    if preprocessing.resize is None:
        new_height, new_width = crop_height, crop_width
    else:
        short = min(width, height)
        # The long side is cut to whole pixels, as torchvision does.
        new_height, new_width = (
            int(preprocessing.resize * side / short) for side in (height, width)
        )
    y0, y1 = _along(box.y0, box.y1, height, new_height, crop_height)
    x0, x1 = _along(box.x0, box.x1, width, new_width, crop_width)
    return Box(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


def _along(start: float, stop: float, stored: int, resized: int, crop: int) -> tuple[int, int]:
    """The same on one axis, rounded outwards; empty (start >= stop) where nothing is left."""
    before = _cropped_before(resized, crop)
    scale = Fraction(resized, stored)  # exact, so that rounding outwards adds no pixel of its own
    first = math.floor(Fraction(max(start, 0)) * scale) - before
    last = math.ceil(Fraction(min(stop, stored)) * scale) - before
    return max(first, 0), min(last, crop)


def _cropped_before(resized: int, crop: int) -> int:
    """Pixels before the crop; less than zero where a frame is put around a smaller image."""
    if resized < crop:
        return -((crop - resized) // 2)
    return round((resized - crop) / 2)  # half a pixel goes to the even side, as in torchvision
