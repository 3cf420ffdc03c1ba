"""The layers that are observed where none are named, on networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zfscale import models
from zfscale.convnet.defaults import first_layer, last_convolution, last_hidden
from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.records import Layer, Preprocessing

SQUARE = Preprocessing(8, (8, 8), (127.5,) * 3)

# Model: first convolution, last convolution, what the classifier sees.
KNOWN = {
    "zfscale:zfnet-mini": ("conv1", "conv5", "relu7"),
    "zfscale:cifar": ("conv1", "conv4", "relu5"),
    "torchvision:alexnet": ("features.0", "features.10", "classifier.5"),
    "torchvision:resnet18": ("conv1", "layer4.1.conv2", "avgpool"),
    "torchvision:squeezenet1_1": ("features.0", "classifier.1", "cat_7"),
}


@pytest.mark.parametrize("model", KNOWN)
def test_of_known_networks(model: str) -> None:
    network = models.load(model, "seed:0")
    found = (first_layer(network), last_convolution(network), last_hidden(network))
    assert tuple(layer.name for layer in found) == KNOWN[model]


@pytest.mark.parametrize("model", ["zfscale:zfnet-mini", "torchvision:resnet18"])
def test_the_classifier_sees_the_last_hidden_layer(model: str) -> None:
    """Its features times the weights of the last module are the logits."""
    network = models.load(model, "seed:0")
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, activations: torch.Tensor) -> None:
        seen[name] = activations.clone()

    hidden = last_hidden(network)
    pixels = torch.randint(0, 256, (2, 3, *network.preprocessing.crop)).byte()
    logits = network.forward(pixels, [hidden], keep)
    classifier = list(network.module.modules())[-1]
    with torch.inference_mode():
        expected = classifier(seen[hidden.name].flatten(1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_rectification_counts_to_the_convolution() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2)]
    network = Network(nn.Sequential(*layers), SQUARE)
    assert first_layer(network) == Layer("0", "1", 4, 6, 6, (1, 1), (3, 3))
    assert last_convolution(network) == last_hidden(network) == network.layer("2")


def test_a_classifier_on_pixels_has_no_hidden_layer() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), SQUARE, "linear")
    with pytest.raises(UsageError, match="model linear has no hidden layer"):
        last_hidden(network)
    for default in (first_layer, last_convolution):
        with pytest.raises(UsageError, match="model linear has no convolution"):
            default(network)


def test_an_untraceable_network_must_be_told() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).mean((2, 3))
            return self.fc(x if x.sum() > 0 else -x)

    network = Network(Branching(), SQUARE, "branching")
    assert first_layer(network).name == last_convolution(network).name == "conv"
    with pytest.raises(UsageError, match=r"model branching cannot be traced.*name the layers"):
        last_hidden(network)
