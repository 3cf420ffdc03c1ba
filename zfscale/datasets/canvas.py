"""A supersampled drawing surface that remembers which part owns each pixel.

Knows polygons, ellipses and strokes in a frame of their own; not what they depict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SAMPLES = 4
"""Samples per pixel and axis."""

Points = NDArray[np.float64]
Colour = tuple[int, int, int]

_CIRCLE = np.linspace(0, 2 * np.pi, 48, endpoint=False)


@dataclass(frozen=True)
class Frame:
    """Local coordinates: `x` right, `y` down, turned by `angle` (radians), scaled, moved.

    `origin` (x, y) and `scale` are in image pixels.
    """

    origin: tuple[float, float]
    scale: float
    angle: float = 0.0

    def to_image(self, points: Points) -> Points:
        """Local points (n, 2) to image pixels (n, 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        image: Points = np.asarray(self.origin) + self.scale * (points @ turn)
        return image

    def at(self, x: float, y: float, angle: float = 0.0) -> Frame:
        """A frame whose origin lies at a local point, turned further."""
        ox, oy = self.to_image(np.array([[x, y]]))[0]
        return replace(self, origin=(float(ox), float(oy)), angle=self.angle + angle)


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """An upright ellipse as a polygon."""
    return np.stack([x + rx * np.cos(_CIRCLE), y + ry * np.sin(_CIRCLE)], axis=1)


def stroke(line: Points, width: float, taper: float = 1.0) -> Points:
    """A line (n, 2) with a width at its start that shrinks to `taper * width`, as a polygon."""
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    half = normal * (width / 2 * np.linspace(1, taper, len(line)))[:, None]
    return np.concatenate([line + half, (line - half)[::-1]])


def bezier(*points: tuple[float, float]) -> Points:
    """A quadratic Bezier curve through three control points, (16, 2)."""
    start, middle, end = np.array(points, dtype=np.float64)
    t = np.linspace(0, 1, 16)[:, None]
    return np.asarray((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end)


class Canvas:
    """Draws polygons over a background; `part` 0 is nobody's, 1 to 255 own what they cover."""

    def __init__(self, background: Image.Image) -> None:
        self._size = background.size
        big = (background.width * SAMPLES, background.height * SAMPLES)
        # Enlarging by repetition is undone exactly by the reduction at the end.
        self._image = background.resize(big, Image.Resampling.NEAREST)
        self._owner = Image.new("L", big, 0)
        self._draw = ImageDraw.Draw(self._image)
        self._own = ImageDraw.Draw(self._owner)

    def fill(self, frame: Frame, polygon: Points, colour: Colour, part: int = 0) -> None:
        """Fill a polygon, given in local coordinates."""
        corners = _corners(frame, polygon)
        self._draw.polygon(corners, fill=colour)
        self._own.polygon(corners, fill=part)

    def outline(
        self, frame: Frame, polygon: Points, width: float, colour: Colour, part: int = 0
    ) -> None:
        """Draw the edge of a polygon; `width` is in local coordinates, half of it inside."""
        # The first edge twice: only then is the corner at its start joined too.
        corners = _corners(frame, np.concatenate([polygon, polygon[:2]]))
        pixels = max(1, round(width * frame.scale * SAMPLES))
        self._draw.line(corners, fill=colour, width=pixels, joint="curve")
        self._own.line(corners, fill=part, width=pixels, joint="curve")

    def image(self) -> Image.Image:
        """What was drawn, at the size of the background."""
        return self._image.reduce(SAMPLES)

    def boxes(self, parts: Sequence[int]) -> list[tuple[int, int, int, int] | None]:
        """Of each part what is visible: (x0, y0, x1, y1) in image pixels, half open, or None."""
        owner = np.asarray(self._owner)
        return [_bounds(owner == part) for part in parts]


def _corners(frame: Frame, polygon: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in frame.to_image(polygon) * SAMPLES]


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return None
    x0, y0 = int(xs[0]) // SAMPLES, int(ys[0]) // SAMPLES
    return x0, y0, int(xs[-1]) // SAMPLES + 1, int(ys[-1]) // SAMPLES + 1
