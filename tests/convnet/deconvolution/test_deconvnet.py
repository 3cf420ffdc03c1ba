"""Projections against Captum, against autograd on full maps, and against plain loops."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import NeuronDeconvolution
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from convnet import oracle

from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.errors import UnsupportedOperation
from zfscale.models.networks import zfnet

TOLERANCE = 1e-5


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    module = getattr(torchvision.models, name)(**options).eval()
    if name.startswith("vgg"):
        del module.classifier  # nine tenths of the weights, and not on the way of any convolution
        module.classifier = nn.Flatten()
    return randomise(module)


def randomise(module: nn.Module) -> nn.Module:
    """Weights and statistics under which no layer fades, with biases that are not zero."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.1, 0.3)
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                part.bias.data.uniform_(-0.1, 0.1)
    return module


def build_zfnet(normalisation: bool = False) -> nn.Module:
    torch.manual_seed(0)
    module = zfnet.build(classes=10, normalisation=normalisation)[:-8].eval()
    return randomise(module)


@pytest.mark.parametrize(("name", "side"), [("zfnet", 224), ("alexnet", 127), ("vgg16", 48)])
def test_equals_captum_times_activation(name, side):
    module = build_zfnet() if name == "zfnet" else build(name)
    net, pixels = oracle.network(module, side, name), oracle.image(side)
    for layer in net.layers:
        activations, _ = oracle.observe(net, layer, pixels)
        units = oracle.strongest(activations)
        found = oracle.project(net, layer, pixels, units)
        neuron = NeuronDeconvolution(module, module.get_submodule(layer.node))
        image = net.normalise(pixels).requires_grad_()
        with pytest.warns(UserWarning, match="Setting backward hooks"):
            attributed = [neuron.attribute(image, unit)[0].detach() for unit in units]
        true = [a * activations[u] for a, u in zip(attributed, units, strict=True)]
        assert oracle.error(found, torch.stack(true).numpy()) < TOLERANCE, layer.name


@pytest.mark.parametrize(
    ("name", "layer", "place"),
    [
        ("vgg16_bn", "features.3", "features.5"),
        ("vgg16_bn", "features.24", "features.26"),
        ("squeezenet1_1", "features.0", "features.1"),
        ("squeezenet1_1", "features.4.expand3x3", "features.4.expand3x3_activation"),
        ("squeezenet1_1", "features.10.squeeze", "features.10.squeeze_activation"),
        ("squeezenet1_1", "classifier.1", "classifier.2"),
        ("googlenet", "conv3.conv", "conv3"),
        ("googlenet", "inception3b.branch3.1.conv", "inception3b.branch3.1"),
        ("googlenet", "inception3b.branch4.1.conv", "inception3b.branch4.1"),
        ("googlenet", "inception4c.branch2.1.conv", "inception4c.branch2.1"),
        ("googlenet", "inception5b.branch4.1.conv", "inception5b.branch4.1"),
        ("googlenet", "fc", "fc"),
        ("resnet18", "conv1", "relu"),
        ("resnet18", "layer1.1.conv2", "layer1.1"),
        ("resnet18", "layer2.0.conv2", "layer2.0"),
        ("resnet18", "layer4.1.conv2", "layer4.1"),
        ("resnet50", "layer1.0.conv3", "layer1.0"),
        ("resnet50", "layer3.0.conv3", "layer3.0"),
        (
            "densenet121",
            "features.denseblock1.denselayer2.conv1",
            "features.denseblock1.denselayer2.relu2",
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer3.conv2",
            "features.denseblock1.denselayer3.conv2",
        ),
        (
            "densenet121",
            "features.denseblock2.denselayer4.conv1",
            "features.denseblock2.denselayer4.relu2",
        ),
        (
            "densenet121",
            "features.denseblock3.denselayer1.conv1",
            "features.denseblock3.denselayer1.relu2",
        ),
        ("alexnet", "classifier.4", "classifier.5"),
    ],
)
def test_equals_autograd_with_rectified_signals(name, layer, place):
    side = 48 if name == "vgg16_bn" else 96
    module = build(name)
    net, pixels = oracle.network(module, side, name), oracle.image(side)
    layer = net.layer(layer)
    activations, _ = oracle.observe(net, layer, pixels)
    units = oracle.strongest(activations)
    found = oracle.project(net, layer, pixels, units)
    true = oracle.by_autograd(module, place, net.normalise(pixels), units)
    assert oracle.error(found, true) < TOLERANCE


def test_passes_contrast_normalisation_through():
    module = build_zfnet(normalisation=True)
    net, pixels = oracle.network(module, 224), oracle.image(224)
    layer = net.layer("conv4")
    activations, _ = oracle.observe(net, layer, pixels)
    units = oracle.strongest(activations)[:3]
    found = oracle.project(net, layer, pixels, units)
    true = oracle.by_autograd(module, "relu4", net.normalise(pixels), units)
    assert oracle.error(found, true) < TOLERANCE


def chain(kinds: str) -> tuple[nn.Sequential, list[tuple]]:
    """A small net in torch, and in words for the loops: c and C are convolutions, p pools."""
    torch.manual_seed(len(kinds))
    channels, modules, words = 3, [], []
    for kind in kinds:
        if kind in "cC":
            stride, k = (1, 3) if kind == "c" else (2, 4)
            module = nn.Conv2d(channels, 5, k, stride=stride, padding=1)
            weight, bias = (t.detach().double().numpy() for t in (module.weight, module.bias))
            words.append(("conv", weight, bias, stride, 1))
            channels = 5
        elif kind == "r":
            module = nn.ReLU(inplace=True)
            words.append(("relu",))
        else:
            module = nn.MaxPool2d(3, 2, ceil_mode=True)
            words.append(("pool", 3, 2))
        modules.append(module)
    return nn.Sequential(*modules).eval(), words


@pytest.mark.parametrize("unpooling", ["accumulate", "place"])
@pytest.mark.parametrize("kinds", ["cr", "crpcr", "Crpcrpcr", "crpC"])
def test_equals_plain_loops_at_every_position(kinds, unpooling):
    module, words = chain(kinds)
    net, pixels = oracle.network(module, 13), oracle.image(13)
    layer = net.layers[-1]
    activations, _ = oracle.observe(net, layer, pixels)
    image = net.normalise(pixels)[0].double().numpy()
    units = [
        (int(activations[:, y, x].abs().argmax()), y, x)
        for y in range(layer.height)
        for x in range(layer.width)
    ]
    units = [unit for unit in units if activations[unit] != 0]
    true = np.stack([oracle.by_loops(words, image, unit, unpooling) for unit in units])
    found = oracle.project(net, layer, pixels, units, unpooling)
    shown = np.abs(true).max((1, 2, 3)) > 0
    assert shown.sum() > len(units) / 2
    assert not found[~shown].any()
    assert oracle.error(found[shown], true[shown]) < TOLERANCE


def test_the_two_ways_of_unpooling_differ():
    module, _ = chain("Crpcrpcr")
    net, pixels = oracle.network(module, 33), oracle.image(33)
    layer = net.layers[-1]
    activations, _ = oracle.observe(net, layer, pixels)
    units = oracle.strongest(activations)
    one, other = (oracle.project(net, layer, pixels, units, how) for how in ("accumulate", "place"))
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


class Branches(nn.Module):
    """Kernels, strides and pools that differ between branches, on an image that is not square."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=(2, 1), padding=(1, 0))
        self.wide = nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=3)
        self.narrow = nn.Conv2d(6, 6, 1)
        self.pool = nn.MaxPool2d((2, 3), stride=(2, 1), padding=(0, 1))
        self.down = nn.Conv2d(6, 6, (4, 3), stride=(2, 1), padding=(1, 1))
        self.mean = nn.AvgPool2d(3, stride=2, padding=1)
        self.last = nn.Conv2d(12, 4, 3, padding="same")

    def forward(self, x):
        x = torch.nn.functional.relu(self.stem(x))
        x = self.wide(x) + self.narrow(x) + x
        x = torch.cat([self.pool(x), self.down(x)], 1)
        return self.last(self.mean(x)).relu()


def test_branches_that_meet_again():
    torch.manual_seed(0)
    module = randomise(Branches()).eval()
    net = oracle.network(module, 48)
    pixels = oracle.image(48)
    for layer, place in ((net.layer("wide"), "wide"), (net.layer("down"), "down")):
        activations, _ = oracle.observe(net, layer, pixels)
        units = [
            (int(activations[:, y, x].argmax()), y, x)
            for y, x in oracle.positions(*activations.shape[1:])
        ]
        found = oracle.project(net, layer, pixels, units)
        true = oracle.by_autograd(module, place, net.normalise(pixels), units)
        assert oracle.error(found, true) < TOLERANCE
    layer = net.layer("last")
    activations, _ = oracle.observe(net, layer, pixels)
    units = oracle.strongest(activations)
    found = oracle.project(net, layer, pixels, units)
    true = oracle.by_autograd(module, "last", net.normalise(pixels), units)
    assert oracle.error(found, true) < TOLERANCE


def test_a_batch_is_the_sum_of_its_units():
    module, _ = chain("Crpcrpcr")
    net, pixels = oracle.network(module, 33), oracle.image(33)
    activations, _ = oracle.observe(net, net.layers[-1], pixels)
    units = oracle.strongest(activations)
    together = oracle.project(net, net.layers[-1], pixels, units * 20)
    alone = np.concatenate([oracle.project(net, net.layers[-1], pixels, [u]) for u in units])
    np.testing.assert_allclose(together[-len(units) :], alone, atol=1e-6 * np.abs(alone).max())


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)), "node 1 .*GELU"),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 4, 3)),
            "node 0 .*ConvTranspose2d",
        ),
        (nn.Sequential(nn.MaxPool2d(16), nn.Conv2d(3, 4, 1)), "node 0 .*MaxPool.*255"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), "reflect"),
    ],
)
def test_names_the_operation_in_the_way(module, named):
    net = oracle.network(module, 32)
    with pytest.raises(UnsupportedOperation, match=named):
        Deconvnet(net.traced, list(net.traced.nodes)[-1])
