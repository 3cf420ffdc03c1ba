"""What one forward pass shows: maxima, candidates, and images that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zfscale.convnet.network import Network
from zfscale.convnet.observing.observe import Observation, observe
from zfscale.convnet.observing.topk import ImageIds, TopK
from zfscale.records import Columns, Preprocessing

SIDE = 16
BATCH = 8
K = 2


class Divides(nn.Module):
    """Divides by its brightest input after conv1, and hides what comes of it from the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3)
        self.conv2 = nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.conv1(x))
        second = torch.relu(self.conv2(first / torch.amax(x, (1, 2, 3), keepdim=True)))
        return self.fc(torch.nan_to_num(second, 0, 0, 0).mean((2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    module = Divides()
    nn.init.constant_(module.conv1.bias, 1)  # a black image excites conv1 more than any other
    with torch.no_grad():
        module.conv1.weight.copy_(-module.conv1.weight.abs())
    return Network(module, Preprocessing(None, (SIDE, SIDE), (0.0,) * 3, scale=1 / 255))


def _pixels(count: int) -> torch.Tensor:
    pixels = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8)
    pixels[:count] = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    return pixels


def _who(count: int) -> ImageIds:
    return ImageIds.of([f"{number:032x}" for number in range(count)], [0] * count)


def _observe(network: Network, pixels: torch.Tensor, who: ImageIds) -> Observation:
    thresholds = TopK(sum(layer.channels for layer in network.layers), K).thresholds
    return observe(network, network.layers, pixels, who, thresholds)


def _rows(network: Network, pixels: torch.Tensor, who: ImageIds) -> Columns:
    top_k = TopK(sum(layer.channels for layer in network.layers), K)
    seen = _observe(network, pixels, who)
    top_k.add(seen.thresholds, seen.candidates)
    return top_k.winners().rows()


def test_an_image_that_fails_late_leaves_no_trace_early(network: Network) -> None:
    pixels = _pixels(6)
    pixels[2:4] = 0  # black: 1 / 0 after conv1
    seen = _observe(network, pixels, _who(6))
    assert seen.finite.tolist() == [True, True, False, False, True, True]
    assert seen.logits is not None
    assert np.isfinite(seen.logits).all()  # the logits alone would not tell

    kept = [0, 1, 4, 5]
    alone = torch.zeros_like(pixels)
    alone[:4] = pixels[kept]
    who = ImageIds.of([f"{number:032x}" for number in kept], [0] * 4)
    expected = _rows(network, alone, who)
    found = _rows(network, pixels, _who(6))
    for column in ("feature", "rank", "score", "low", "y", "x"):
        np.testing.assert_array_equal(found[column], expected[column])


def test_padding_is_no_image(network: Network) -> None:
    rows = _rows(network, _pixels(3), _who(3))
    assert set(rows["low"].tolist()) <= {0, 1, 2}
    seen = _observe(network, _pixels(3), _who(3))
    assert seen.scores.shape == (3, 5 + 4)
    assert seen.finite.all()
