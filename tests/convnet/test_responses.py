"""Responses to transforms against the definitions, one image at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from zfscale import models
from zfscale.convnet.defaults import first_layer, last_hidden
from zfscale.convnet.network import Network
from zfscale.convnet.responses import Responses, respond
from zfscale.convnet.transforms import TRANSFORMS
from zfscale.records import Preprocessing

SQUARE = Preprocessing(40, (40, 40), (127.5,) * 3, (60.0,) * 3)
STEPS = [
    *(("vertical", amount) for amount in (-3.0, 0.0, 1.5)),
    *(("horizontal", amount) for amount in (0.0, 2.0)),
    *(("scale", amount) for amount in (1.0, 1.3)),
    *(("rotation", amount) for amount in (0.0, 30.0, 360.0)),
]
SAME = [at for at, step in enumerate(STEPS) if step[1] in (TRANSFORMS[step[0]].neutral, 360)]


class Undecided(nn.Module):
    """Cannot be traced, for it decides by what it sees. Writes over its input, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.conv(x.mul_(0.5)))
        return self.head((x if x.sum() > 0 else -x).mean((2, 3)))


NETWORKS = {
    "zfnet-mini": lambda: models.load("zfscale:zfnet-mini", None),
    "cifar": lambda: models.load("zfscale:cifar", "seed:0"),
    "resnet18": lambda: Network(torchvision.models.resnet18(), SQUARE),
    "squeezenet": lambda: Network(torchvision.models.squeezenet1_1(), SQUARE),
    "untraceable": lambda: Network(Undecided(), SQUARE),
}


def chosen(network: Network) -> list:
    if network.graph is None:
        return [network.layer("conv"), network.layer("head")]
    return [first_layer(network), last_hidden(network)]


def pictures(network: Network, count: int, batch: int) -> torch.Tensor:
    """Smooth colours, then padding."""
    height, width = network.preprocessing.crop
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    pixels = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    pixels[:count] = smooth.byte()
    return pixels.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> Network:
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 5), (3, 8)])
def test_no_change_gives_no_distance_and_the_same_probability(network, count, batch) -> None:
    pixels, labels = pictures(network, count, batch), np.arange(count) % 2
    found = respond(network, chosen(network), pixels, labels, STEPS)
    assert found.finite.all()
    assert (found.distance[:, SAME] == 0).all()
    others = [at for at in range(len(STEPS)) if at not in SAME]
    assert (found.distance[:, others] > 0).all()
    for image in range(count):
        assert len(set(found.probability[image, SAME].tolist())) == 1
        assert len(set(found.predicted[image, SAME].tolist())) == 1


def alone(network: Network, layers, image: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Feature vectors and logits of one normalised image (1, 3, H, W), as float64."""
    seen = {}

    def visit(name: str, values: torch.Tensor) -> None:
        seen[name] = values.double().numpy().copy().ravel()

    logits = network.run(image.clone(), layers, visit)[0].double().numpy()
    return [seen[layer.name] for layer in layers], logits


def literal(network: Network, layers, pixels: torch.Tensor, label: int) -> dict:
    """What the definitions say of one image, pixels (1, 3, H, W), by itself."""
    image = network.normalise(pixels)
    before, logits = alone(network, layers, image)
    target = label if 0 <= label < len(logits) else logits.argmax()
    rows = []
    for name, amount in STEPS:
        after, logits = alone(network, layers, TRANSFORMS[name].apply(image, amount))
        exponents = np.exp(logits - logits.max())
        moved = [np.sqrt(((a - b) ** 2).sum()) for a, b in zip(after, before, strict=True)]
        rows.append((moved, exponents[target] / exponents.sum(), logits.argmax()))
    norm = [np.sqrt((vector**2).sum()) for vector in before]
    return {"rows": rows, "norm": norm, "target": target}


@pytest.mark.parametrize("batch", [3, 8])
def test_against_one_image_at_a_time(network, batch: int) -> None:
    """Labels that are known, unknown, and of no class of the network."""
    labels = np.array([1, -1, 99_999])
    layers, pixels = chosen(network), pictures(network, 3, batch)
    found = respond(network, layers, pixels, labels, STEPS)
    for image, label in enumerate(labels):
        answer = literal(network, layers, pixels[image : image + 1], label)
        moved, probability, predicted = zip(*answer["rows"], strict=True)
        norm = np.array(answer["norm"])
        np.testing.assert_allclose(found.norm[image], norm, rtol=1e-5)
        np.testing.assert_allclose(found.distance[image] / norm, moved / norm, atol=1e-5)
        np.testing.assert_allclose(found.probability[image], probability, atol=1e-5)
        assert found.target[image] == answer["target"]
        assert found.predicted[image].tolist() == list(predicted)


def test_every_feature_counts_once() -> None:
    """A network that adds one to what it sees: distances are those of the pixels."""
    conv = nn.Conv2d(3, 3, 1)
    conv.weight.data, conv.bias.data = torch.eye(3)[:, :, None, None], torch.ones(3)
    network = Network(nn.Sequential(conv), Preprocessing(4, (4, 4), (0.0,) * 3))
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    pixels[0, :, 3] = 3
    steps = [("vertical", 1.0), ("vertical", -1.0)]
    found = respond(network, [network.layer("0")], pixels, np.array([-1]), steps)
    # Three channels, four columns. Moved down, the bright row leaves; up, it takes another's place.
    assert found.norm.tolist() == [[np.sqrt(12 * (3 * 1 + 16))]]
    assert found.distance[0].tolist() == [[np.sqrt(12 * 9)], [np.sqrt(12 * (9 + 9))]]
    assert (found.target.tolist(), found.probability.tolist()) == ([-1], [[0, 0]])


def test_nan_in_one_image_touches_no_other() -> None:
    class Fragile(nn.Module):
        """Gives NaN where the first column is dark: only once the image has moved."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            edge = x[:, :1, :1, :1]
            return self.head((self.conv(x) * (edge / edge)).mean((2, 3)))

    network = Network(Fragile(), Preprocessing(8, (8, 8), (0.0,) * 3))
    pixels = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[1, :, 0, 0] = 0
    layers, labels = [network.layer("head")], np.array([0, 0, 1])
    steps = [("rotation", 0.0), ("scale", 2.0)]
    found = respond(network, layers, pixels, labels, steps)
    assert found.finite.tolist() == [True, False, True]
    assert np.isfinite(found.distance[[0, 2]]).all()
    moved = respond(network, layers, pixels, labels, [*steps, ("vertical", 1.0)])
    assert moved.finite.tolist() == [False] * 3


def test_nothing_of_no_images() -> None:
    none = Responses.none(5, 2)
    assert (none.distance.shape, none.probability.shape, none.norm.shape) == (
        (0, 5, 2), (0, 5), (0, 2),
    )  # fmt: skip
