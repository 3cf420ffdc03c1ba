"""Signs and their distances: an example by hand, all pairs by brute force, and scikit-learn's."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from torch import nn

from zfscale import models
from zfscale.convnet.correspondence import Distances, changes, distances, signs
from zfscale.convnet.network import Network
from zfscale.records import Preprocessing


def red_minus_mean(height: int, width: int) -> Network:
    """A network whose only feature is the red channel less its mean of 128."""
    conv = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
    return Network(nn.Sequential(conv), Preprocessing(None, (height, width), (128.0,) * 3))


def test_three_images_by_hand() -> None:
    """Images of 2 x 3 pixels, of which the left 2 x 2 are covered with the mean.

    Covered, the feature is 0, so e = x - 0 is the red value less 128 there, and 0 elsewhere:

        A   129 127 | 200    B   130 140 | 10     C   1   0  | 128
            255 128 | 7          129 100 | 99         128 128 | 127

        sign(e) of   A: + - 0 + 0 0    B: + + 0 + - 0    C: - - 0 0 0 0

    They differ in 2 (A, B), 2 (A, C) and 4 (B, C) of the 6 components:
        mean      (2 + 2 + 4) / (3 * 6) = 4/9
        variance  ((4 + 4 + 16) / 3 - (8/3)^2) / 36 = (8/9) / 36 = 2/81, so std = sqrt(2)/9
    Numbers of +, - and 0 are A: 2 1 3, B: 3 1 2, C: 0 2 4, so shuffled they would agree in
        (6 + 1 + 6 + 0 + 2 + 12 + 0 + 2 + 8) / 6 = 37/6 of 18: chance = (18 - 37/6) / 18 = 71/108
    """
    network = red_minus_mean(2, 3)
    red = [[129, 127, 200, 255, 128, 7], [130, 140, 10, 129, 100, 99], [1, 0, 128, 128, 128, 127]]
    pixels = torch.zeros(4, 3, 2, 3, dtype=torch.uint8)  # the fourth is padding
    pixels[:3, 0] = torch.tensor(red, dtype=torch.uint8).view(3, 2, 3)
    layers = [network.layer("0")]
    found, finite = changes(network, layers, pixels, [[(0, 0, 2, 2)]] * 3)
    assert finite.tolist() == [True] * 3
    result = distances(np.stack([mine[0][0] for mine in found]), 6)
    assert result == Distances(pairs=3, total=8, squares=24, shuffled=71)
    assert result.mean(6) == 4 / 9
    assert result.std(6) == pytest.approx(math.sqrt(2) / 9, rel=1e-15)
    assert result.chance(6) == 71 / 108


def test_the_colour_of_the_occluder_is_what_the_network_sees() -> None:
    """With red 130 instead of the mean, e = red - 130 in the box."""
    network = red_minus_mean(1, 3)
    pixels = torch.tensor([129, 130, 131], dtype=torch.uint8).view(1, 1, 1, 3).repeat(1, 3, 1, 1)
    found, _ = changes(network, [network.layer("0")], pixels, [[(0, 0, 1, 3)]], (130, 9, 9))
    assert unpacked(found[0][0][0], 3).tolist() == [-1, 0, 1]


def unpacked(packed: np.ndarray, components: int) -> np.ndarray:
    """Signs as -1, 0 and 1, shape (..., D)."""
    bits = np.unpackbits(packed.view(np.uint8), axis=-1)[..., :components].astype(int)
    return bits[..., 0, :] - bits[..., 1, :]


def drawn(count: int, components: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (count, components))


@given(st.integers(0, 9), st.sampled_from([1, 63, 64, 65, 200]), st.integers(0, 99))
def test_all_pairs_by_brute_force(count: int, components: int, seed: int) -> None:
    vectors = drawn(count, components, seed)
    packed = signs(torch.from_numpy(vectors * 0.5))
    assert unpacked(packed, components).tolist() == vectors.tolist()
    pairs = [
        Fraction(sum(a != b for a, b in zip(one, other, strict=True)), components)
        for one, other in itertools.combinations(vectors.tolist(), 2)
    ]
    found = distances(packed, components)
    assert found.pairs == len(pairs)
    if not pairs:
        assert (found.mean(components), found.std(components)) == (None, None)
        assert found.chance(components) is None
        return
    mean = sum(pairs) / len(pairs)
    variance = sum((pair - mean) ** 2 for pair in pairs) / len(pairs)
    assert found.mean(components) == float(mean)
    assert found.std(components) == pytest.approx(math.sqrt(variance), rel=1e-15)
    # Every component of the one meets every component of the other equally often.
    met = [
        Fraction(sum(a != b for a in one for b in other), components**2)
        for one, other in itertools.combinations(vectors.tolist(), 2)
    ]
    assert found.chance(components) == float(sum(met) / len(met))


def test_distances_are_those_of_scikit_learn() -> None:
    vectors = drawn(12, 777, 0)
    square = pairwise_distances(vectors, metric="hamming")
    pairs = square[np.triu_indices(12, 1)]
    found = distances(signs(torch.from_numpy(vectors)), 777)
    assert found.mean(777) == pytest.approx(pairs.mean(), rel=1e-14)
    assert found.std(777) == pytest.approx(pairs.std(), rel=1e-12)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_blocks_change_nothing(block: int) -> None:
    packed = signs(torch.from_numpy(drawn(30, 500, 1)))
    expected = distances(packed, 500)
    assert distances(packed, 500, block) == expected
    assert distances(packed[::-1], 500, block) == expected


def test_adding_puts_pairs_together() -> None:
    """Two draws of two images each are two pairs, not the six of four images."""
    one, other = (signs(torch.from_numpy(drawn(2, 10, seed))) for seed in (0, 1))
    both = distances(one, 10) + distances(other, 10)
    single = [float(distances(each, 10).mean(10)) for each in (one, other)]
    assert both.pairs == 2
    assert both.mean(10) == pytest.approx(np.mean(single), rel=1e-15)
    assert both.std(10) == pytest.approx(np.std(single), rel=1e-12)


@pytest.mark.parametrize("model", ["zfscale:zfnet-mini", "zfscale:cifar"])
def test_what_an_occluder_cannot_reach_does_not_change(model: str) -> None:
    """Exactly: a last bit that differed would count as much as any other change."""
    network = models.load(model, "seed:0")
    layer = network.layer("conv1")
    size = network.preprocessing.crop
    pixels = torch.randint(0, 256, (5, 3, *size)).byte()
    box = (8, 12, 15, 21)
    found, _ = changes(network, [layer], pixels, [[box, box]] * 3)
    window = network.window(layer)
    rows, columns = np.indices((layer.height, layer.width))
    y0, x0 = window.origin(rows, columns)
    reached = (y0 < 15) & (y0 + window.size[0] > 8) & (x0 < 21) & (x0 + window.size[1] > 12)
    for image in found:
        first, second = (unpacked(turn[0], reached.size * layer.channels) for turn in image)
        assert (first == second).all()
        maps = first.reshape(layer.channels, *reached.shape)
        assert not maps[:, ~reached].any()
        assert maps[:, reached].any()


def test_images_with_fewer_boxes_and_none() -> None:
    network = red_minus_mean(2, 2)
    pixels = torch.full((3, 3, 2, 2), 200, dtype=torch.uint8)
    boxes = [[(0, 0, 1, 1)], [], [(0, 0, 1, 1), (1, 1, 2, 2)]]
    found, _ = changes(network, [network.layer("0")], pixels, boxes)
    shapes = [[unpacked(turn[0], 4).tolist() for turn in image] for image in found]
    assert shapes == [[[1, 0, 0, 0]], [], [[1, 0, 0, 0], [0, 0, 0, 1]]]


def test_features_are_kept_before_they_are_overwritten() -> None:
    """A rectification in place follows; the feature is 128 less red, so -1, and 0 when covered."""
    linear = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0]]))
    module = nn.Sequential(nn.Flatten(), linear, nn.ReLU(inplace=True))
    network = Network(module, Preprocessing(None, (1, 1), (128.0,) * 3))
    pixels = torch.full((2, 3, 1, 1), 129, dtype=torch.uint8)
    found, _ = changes(network, [network.layer("1")], pixels, [[(0, 0, 1, 1)]])
    assert unpacked(found[0][0][0], 1).tolist() == [-1]


def test_features_that_are_not_finite_are_told() -> None:
    """Image 1 overflows as it is, image 2 only when it is covered."""

    class Reciprocal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1, bias=False)
            with torch.no_grad():
                self.conv.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 / self.conv(x)

    network = Network(Reciprocal(), Preprocessing(None, (1, 2), (128.0,) * 3))
    red = torch.tensor([[1, 2], [128, 2], [1, 2]], dtype=torch.uint8)
    pixels = red.view(3, 1, 1, 2).repeat(1, 3, 1, 1)
    _, finite = changes(network, [network.layer("truediv")], pixels, [[], [], [(0, 1, 1, 2)]])
    assert finite.tolist() == [True, False, False]
