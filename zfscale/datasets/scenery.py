"""What stands behind a creature and the light that falls on both. Nothing here knows a class."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from zfscale.datasets.canvas import Colour, Frame, Points, ellipse

_SAMPLES = 2


def colour(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 of a hue (any real, 1 is a full turn), saturation and value in 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def background(rng: np.random.Generator, size: int) -> Image.Image:
    """A gradient with 14 to 30 overlapping shapes in three depths, the far ones out of focus."""
    hue = rng.uniform()
    top = np.array(colour(hue, rng.uniform(0.1, 0.5), rng.uniform(0.45, 0.95)))
    bottom = np.array(colour(hue + rng.normal(0, 0.12), *rng.uniform((0.1, 0.3), (0.6, 0.85))))
    fade = np.linspace(0, 1, size)[:, None, None]
    pixels = np.broadcast_to(top * (1 - fade) + bottom * fade, (size, size, 3))
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    for blur in (2.5, 1.2, 0.4):
        image = _clutter(rng, image, int(rng.integers(5, 11)), hue)
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return image


def shadow(image: Image.Image, frame: Frame, y: float) -> Image.Image:
    """Darken the ground below a creature whose feet stand at local height `y`."""
    mask = Image.new("L", image.size, 0)
    spot = frame.to_image(ellipse(0, y, 1.15, 0.28))
    ImageDraw.Draw(mask).polygon([(float(px), float(py)) for px, py in spot], fill=120)
    return Image.composite(
        Image.new("RGB", image.size, (12, 12, 30)), image, mask.filter(ImageFilter.GaussianBlur(3))
    )


def light(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Light of a random side, strength and tint, and a little sensor noise."""
    width, height = image.size
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.22)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slope = 1 + depth * (np.cos(angle) * x + np.sin(angle) * y)
    tint = rng.uniform(0.86, 1.1) * rng.uniform(0.95, 1.05, 3)
    noise = rng.normal(0, rng.uniform(0.5, 3.0), (height, width, 1))
    pixels = np.asarray(image, dtype=np.float64) * slope[..., None] * tint + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _clutter(rng: np.random.Generator, image: Image.Image, count: int, hue: float) -> Image.Image:
    big = image.resize((image.width * _SAMPLES, image.height * _SAMPLES), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(big)
    for _ in range(count):
        spread = hue + rng.normal(0, 0.18)
        paint = colour(spread, rng.uniform(0.1, 0.65), rng.uniform(0.3, 0.95))
        origin = rng.uniform(0, big.width, 2)
        place = Frame((origin[0], origin[1]), big.width / 10, rng.uniform(0, 2 * np.pi))
        outline = place.to_image(_shape(rng))
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=paint)
    return big.reduce(_SAMPLES)


def _shape(rng: np.random.Generator) -> Points:
    kind, (a, b) = rng.integers(5), rng.uniform((0.4, 0.2), (1.4, 0.7))
    if kind == 0:
        return ellipse(0, 0, a, b)
    if kind == 1:
        return np.array([(-a, -b), (a, -b), (a, b), (-a, b)])
    if kind == 2:
        return np.array([(-a, b), (0, -a), (a, b)])
    if kind == 3:  # a blade of grass or a twig
        return np.array([(-2 * a, 0), (0, -0.12), (2 * a, 0), (0, 0.12)])
    return _leaf(a, b)


def _leaf(length: float, width: float) -> NDArray[np.float64]:
    t = np.linspace(-1, 1, 17)
    edge = np.stack([length * t, width * (1 - t**2)], axis=1)
    return np.concatenate([edge, edge[::-1] * (1, -1)])
