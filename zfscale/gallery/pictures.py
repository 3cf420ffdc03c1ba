"""Pixels for people: contrast, montages, encoding. Knows numpy and Pillow, no run and no files."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SHOWN = 9
"""Winners in a montage, as in Figure 2 of the paper."""

SMALLEST, LARGEST = 48, 96
"""Bounds in pixels of the longer side of a montage's tile."""

LOSSLESS = 48
"""Pictures whose tiles are at most this long are stored lossless: JPEG would smear them."""


def to_grey(projection: NDArray[np.float32]) -> Pixels:
    """A projection (h, w, 3) as uint8, zero always mid grey (128), contrast of its own.

    White and black stand at the largest magnitude of the projection, or at three times its root
    mean square where that is less, so that one outlier does not turn all else grey.
    """
    magnitude = float(np.abs(projection).max(initial=0.0))
    spread = 3.0 * math.sqrt(float(np.mean(np.square(projection, dtype=np.float64))))
    scale = min(magnitude, spread)
    if scale == 0.0:
        return np.full(projection.shape, 128, np.uint8)
    shown: Pixels = np.clip(np.rint(128.0 + projection * (127.0 / scale)), 1, 255).astype(np.uint8)
    return shown


def tile_shape(field: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a montage's tile for a receptive field: whole-number zoom or a shrink."""
    longest = max(field)
    if longest > LARGEST:
        return max(1, round(field[0] * LARGEST / longest)), max(
            1, round(field[1] * LARGEST / longest)
        )
    zoom = math.ceil(SMALLEST / longest)
    return field[0] * zoom, field[1] * zoom


def fit(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """Pixels resized to (height, width): nearest when enlarged, area average when shrunk."""
    height, width = shape
    if pixels.shape[:2] == (height, width):
        return pixels
    grows = height >= pixels.shape[0]
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def side(count: int) -> int:
    """Columns of the smallest square montage that holds `count` tiles."""
    return max(1, math.isqrt(max(count, 1) - 1) + 1)


def montage(tiles: Pixels, places: int) -> Pixels:
    """Tiles (n, h, w, 3) row by row in a square of `places`; hatched where n is less."""
    count, height, width, _ = tiles.shape
    columns = side(places)
    sheet = np.empty((columns, height, columns, width, 3), np.uint8)
    sheet[:] = _hatch(height, width)[None, :, None]
    for index in range(min(count, places)):
        row, column = divmod(index, columns)
        sheet[row, :, column] = tiles[index]
    return sheet.reshape(columns * height, columns * width, 3)


def suffix(shape: tuple[int, int]) -> str:
    """How a picture with tiles of this shape is stored: png (lossless) or jpg."""
    return "png" if max(shape) <= LOSSLESS else "jpg"


def encode(pixels: Pixels, kind: str) -> bytes:
    """Pixels as PNG or as JPEG without colour subsampling. The same pixels give the same bytes."""
    buffer = io.BytesIO()
    if kind == "png":
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def _hatch(height: int, width: int) -> Pixels:
    """Diagonal lines that say: there is no winner here."""
    rows, columns = np.indices((height, width))
    grey = np.where((rows + columns) % 8 < 2, 150, 128).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
