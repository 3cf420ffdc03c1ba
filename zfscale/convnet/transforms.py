"""Translation, scaling and rotation of images: what a feature may or may not be invariant to.

Zeiler & Fergus (ECCV 2014), section 4.1 and Figure 5. An image here is the network's input,
normalised: what comes in from outside of it is zero, which is exactly the mean colour. The mean
is no whole number in most networks, so no uint8 pixel could say it.

Images are float32 (B, 3, H, W), on any device; so is what a transform returns, which may be the
image itself. The amount of no change returns it bit for bit. Interpolation is bilinear, and takes
all that is outside of the image as zero, so that a border is blended with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Transform:
    """A family of transforms: `apply(image, amount)`, which changes nothing at `neutral`."""

    apply: Callable[[torch.Tensor, float], torch.Tensor]
    neutral: float


def vertical(image: torch.Tensor, pixels: float) -> torch.Tensor:
    """Move the content down by `pixels`, up where negative. Whole pixels are not interpolated."""
    return _shifted(image, pixels, 2)


def horizontal(image: torch.Tensor, pixels: float) -> torch.Tensor:
    """Move the content to the right by `pixels`, to the left where negative."""
    return _shifted(image, pixels, 3)


def scale(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarge the content about the centre of the image by `factor` > 0; under 1 it shrinks.

    A shrunken image is not smoothed: the scale is meant to stay near 1.
    """
    if factor == 1:
        return image
    return _sampled(image, ((1 / factor, 0), (0, 1 / factor)))


def rotation(image: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn the content about the centre of the image, anticlockwise as it is looked at."""
    if degrees % 360 == 0:
        return image
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _sampled(image, ((cosine, sine), (-sine, cosine)))


TRANSFORMS: Mapping[str, Transform] = {
    "vertical": Transform(vertical, 0),
    "horizontal": Transform(horizontal, 0),
    "scale": Transform(scale, 1),
    "rotation": Transform(rotation, 0),
}


def _shifted(image: torch.Tensor, pixels: float, dim: int) -> torch.Tensor:
    whole = math.floor(pixels)
    part = pixels - whole
    if part:
        near, far = _moved(image, whole, dim), _moved(image, whole + 1, dim)
        return (1 - part) * near + part * far
    return _moved(image, whole, dim) if whole else image


def _moved(image: torch.Tensor, pixels: int, dim: int) -> torch.Tensor:
    """The content `pixels` further along an axis, with zeros where it came from."""
    result = torch.zeros_like(image)
    left = image.shape[dim] - abs(pixels)
    if left > 0:
        content = image.narrow(dim, max(-pixels, 0), left)
        result.narrow(dim, max(pixels, 0), left).copy_(content)
    return result


def _sampled(
    image: torch.Tensor, source: tuple[tuple[float, float], tuple[float, float]]
) -> torch.Tensor:
    """The image whose pixel at (y, x) from the centre is that of `image` at `source` @ (y, x)."""
    height, width = image.shape[2:]
    y = torch.arange(height, dtype=torch.float64, device=image.device) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64, device=image.device) - (width - 1) / 2
    (yy, yx), (xy, xx) = source
    # align_corners=False: pixels are squares, and -1 and 1 are the outer edges of the first and
    # the last one. So the centre is 0, and a step of one pixel 2 / side.
    from_y = (yy * y[:, None] + yx * x) * (2 / height)
    from_x = (xy * y[:, None] + xx * x) * (2 / width)
    grid = torch.stack([from_x, from_y], dim=2).to(image.dtype)
    every = grid.expand(len(image), -1, -1, -1)
    return functional.grid_sample(
        image, every, mode="bilinear", padding_mode="zeros", align_corners=False
    )
