"""A unit projected while its image is at hand, against autograd on full maps."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from convnet import oracle

from zfscale.convnet.deconvolution.deconvnet import Deconvnet, project
from zfscale.convnet.network import Network
from zfscale.records import Preprocessing

SIDE = 23


def build(pooled: bool) -> nn.Sequential:
    torch.manual_seed(3)
    pool = nn.MaxPool2d(3, 2) if pooled else nn.Conv2d(6, 6, 3, 2)
    layers = [nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), pool, nn.Conv2d(6, 4, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU()).eval()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("pooled", [True, False])
def test_equals_autograd_on_the_whole_image(order: str, pooled: bool) -> None:
    recipe = Preprocessing(None, (SIDE, SIDE), (120.0, 110.0, 100.0), order=order)
    network = Network(build(pooled), recipe)
    layer = network.layer("3")
    deconvnet = Deconvnet.of(network, layer)
    pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    image = network.normalise(pixels)
    with torch.inference_mode():
        maps = network.module(image.clone())[0]
    checked = 0
    for y, x in [(0, 0), (5, 4), (layer.height - 1, 2), (layer.height - 1, layer.width - 1)]:
        feature = int(maps[:, y, x].argmax())
        if float(maps[feature, y, x]) == 0:
            continue
        unit = feature, y, x
        found = project(network, deconvnet, image, unit, float(maps[unit]))
        (whole,) = oracle.by_autograd(network.module, "4", image.clone(), [unit])
        whole = whole[::-1] if order == "BGR" else whole
        shown = np.zeros((SIDE, SIDE, 3), np.float32)
        height, width, _ = found.pixels.shape
        shown[found.y0 : found.y0 + height, found.x0 : found.x0 + width] = found.pixels
        np.testing.assert_allclose(
            shown, whole.transpose(1, 2, 0), rtol=0, atol=1e-5 * np.abs(whole).max()
        )
        checked += 1
    assert checked > 1
