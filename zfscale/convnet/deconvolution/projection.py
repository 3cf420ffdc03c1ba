"""One unit of an image that is at hand, projected down to pixels: no stored record is needed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.convnet.deconvolution.switches import crop
from zfscale.convnet.network import Network

Unit = tuple[int, int, int]
"""(feature, y, x) of a layer."""


class Projection(NamedTuple):
    """What lies inside the image of a unit's projection: `pixels` (h, w, 3) float32, RGB, in the
    normalised input, from row `y0` and column `x0` of it on.
    """

    y0: int
    x0: int
    pixels: NDArray[np.float32]


def project(
    network: Network, deconvnet: Deconvnet, image: torch.Tensor, unit: Unit, activation: float
) -> Projection:
    """Project a unit of `deconvnet`'s layer, with the activation that it has in a normalised
    `image` (1, 3, H, W). Zeiler & Fergus (ECCV 2014), section 2.1.
    """
    feature, y, x = unit
    records: dict[str, NDArray[np.uint8]] = {}

    def keep(pool: str, switches: torch.Tensor) -> None:
        records[pool] = crop(switches[0].cpu().numpy(), deconvnet.windows[pool], y, x)[None]

    if deconvnet.pools:
        network.run(image.clone(), pools=tuple(deconvnet.pools), visit_pool=keep)
    (whole,) = deconvnet.project(
        np.array([feature]),
        np.array([activation], np.float32),
        np.array([y]),
        np.array([x]),
        records,
    )
    top, left = deconvnet.windows[network.traced.input].origin(y, x)
    (height, width), (bottom, right) = image.shape[2:], deconvnet.field
    rows = slice(max(-top, 0), min(height - top, bottom))
    columns = slice(max(-left, 0), min(width - left, right))
    colours = slice(None, None, -1 if network.preprocessing.order == "BGR" else 1)
    pixels = whole[colours, rows, columns].transpose(1, 2, 0)
    return Projection(max(top, 0), max(left, 0), np.ascontiguousarray(pixels))
