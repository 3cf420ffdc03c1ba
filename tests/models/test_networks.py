"""The networks of the package against their papers: sizes, parameters, order of operations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from zfscale.models import checkpoint as _checkpoint
from zfscale.models.networks import alexnet, caffenet, cifar, vgg16, zfnet
from zfscale.models.sources import zfscale as _zfscale


def on_meta(build, **options) -> nn.Sequential:
    """A network of shapes without numbers: nothing to compute, nothing to fill."""
    with torch.device("meta"):
        return build(**options)


def shapes(net: nn.Sequential, size: int) -> dict[str, tuple[int, ...]]:
    """Output shape of every layer, without the batch."""
    x = torch.empty(1, 3, size, size, device="meta")
    found = {}
    for name, layer in net.named_children():
        x = layer(x)
        found[name] = tuple(x.shape[1:])
    return found


def order(net: nn.Sequential) -> list[str]:
    return [name for name, _ in net.named_children()]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("normalisation", [True, False])
def test_zfnet_has_the_sizes_of_figure_3(normalisation: bool) -> None:
    found = shapes(on_meta(zfnet.build, normalisation=normalisation), 224)
    named = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "flatten"]
    assert [found[name] for name in named] == [
        (96, 110, 110),
        (96, 55, 55),
        (256, 26, 26),
        (256, 13, 13),
        (384, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
        (256, 6, 6),
        (9216,),
    ]
    assert [found[name] for name in ("fc6", "fc7", "fc8")] == [(4096,), (4096,), (1000,)]
    assert ("norm1" in found) == ("norm2" in found) == normalisation


def test_alexnet_and_caffenet_have_the_published_sizes() -> None:
    for build in (alexnet.build, caffenet.build):
        found = shapes(on_meta(build), 227)
        named = ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
        assert [found[name][1] for name in named] == [55, 27, 27, 13, 13, 13, 13, 6]
        assert [found[f"conv{i}"][0] for i in range(1, 6)] == [96, 256, 384, 384, 256]


def test_vgg16_is_configuration_d() -> None:
    net = on_meta(vgg16.build)
    found = shapes(net, 224)
    convolutions = [name for name in found if name.startswith("conv")]
    assert len(convolutions) == 13
    assert found["conv1_1"] == (64, 224, 224)
    assert found["conv5_3"] == (512, 14, 14)
    assert found["pool5"] == (512, 7, 7)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        # Caffe's reference models; VGG's paper says 138 million.
        (alexnet.build, 60_965_224),
        (caffenet.build, 60_965_224),
        (vgg16.build, 138_357_544),
    ],
    ids=["alexnet", "caffenet", "vgg16"],
)
def test_numbers_of_parameters_are_the_published_ones(build, count: int) -> None:
    assert parameters(on_meta(build)) == count


def test_cifar_is_small_padded_and_batch_normalised() -> None:
    net = on_meta(cifar.build)
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) >= 4
    assert all(layer.padding == (1, 1) for layer in convolutions)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net) == len(convolutions)
    assert shapes(net, 32)["fc6"] == (10,)
    assert parameters(net) < 1_000_000


@pytest.mark.parametrize("name", _zfscale.names())
def test_classes_can_be_chosen(name: str) -> None:
    description = _zfscale._find(name)
    with torch.device("meta"):
        net = description.build(classes=7).eval()
        output = net(torch.empty(2, 3, *description.PREPROCESSING.crop))
    assert output.shape == (2, 7)


def test_alexnet_normalises_before_pooling_and_caffenet_after() -> None:
    assert order(on_meta(alexnet.build))[:4] == ["conv1", "relu1", "norm1", "pool1"]
    assert order(on_meta(caffenet.build))[:4] == ["conv1", "relu1", "pool1", "norm1"]
    assert order(on_meta(zfnet.build))[:4] == ["conv1", "relu1", "pool1", "norm1"]


@pytest.mark.parametrize("build", [alexnet.build, caffenet.build], ids=["alexnet", "caffenet"])
def test_layers_2_4_and_5_see_one_half_each(build) -> None:
    net = on_meta(build)
    assert [net.get_submodule(f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
    for name in ("conv2", "conv4", "conv5"):
        layer = net.get_submodule(name).to_empty(device="cpu")
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        x = torch.randn(1, layer.in_channels, 7, 7)
        halves = [
            functional.conv2d(part, weight, bias, padding=layer.padding)
            for part, weight, bias in zip(
                x.chunk(2, 1), layer.weight.chunk(2), layer.bias.chunk(2), strict=True
            )
        ]
        torch.testing.assert_close(layer(x), torch.cat(halves, 1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "k", "alpha"),
    [
        (zfnet.build, 2.0, 1e-4),
        (alexnet.build, 2.0, 1e-4),
        # Caffe divides alpha by the window.
        (caffenet.build, 1.0, 1e-4 / 5),
    ],
    ids=["zfnet", "alexnet", "caffenet"],
)
def test_normalisation_is_the_formula_of_the_paper(build, k: float, alpha: float) -> None:
    net = on_meta(build)
    a = torch.rand(1, 9, 2, 2, dtype=torch.float64) * 200
    expected = torch.empty_like(a)
    for i in range(9):
        near = a[:, max(0, i - 2) : min(8, i + 2) + 1]
        expected[:, i] = a[:, i] / (k + alpha * near.square().sum(1)) ** 0.75
    for name in ("norm1", "norm2"):
        torch.testing.assert_close(net.get_submodule(name)(a), expected)


def spreads(net: nn.Module, size: int, scale: float) -> list[float]:
    """Standard deviation of what each convolution and linear layer gives for noise."""
    found: list[float] = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _module, _in, out: found.append(float(out.std())))
    with torch.inference_mode():
        net.eval()(torch.randn(2, 3, size, size) * scale)
    return found


@pytest.mark.parametrize(
    ("build", "size", "scale"),
    [(zfnet.build, 224, 70), (alexnet.build, 227, 70), (cifar.build, 32, 1)],
    ids=["zfnet", "alexnet", "cifar"],
)
def test_random_weights_keep_every_layer_awake(build, size: int, scale: float) -> None:
    with _checkpoint.seeded(0):
        net = build()
        _checkpoint.initialise(net)
    found = spreads(net, size, scale)
    assert all(0.02 * scale < spread < 20 * scale for spread in found), found


def test_random_weights_keep_all_of_vgg16_awake() -> None:
    with _checkpoint.seeded(0):
        net = on_meta(vgg16.build)
        features = nn.Sequential(*list(net)[: order(net).index("flatten")]).to_empty(device="cpu")
        _checkpoint.initialise(features)
    found = spreads(features, 64, 70)
    assert len(found) == 13
    assert all(0.2 < after / before < 5 for before, after in pairwise(found)), found


def test_initialisation_is_that_of_he() -> None:
    net = cifar.build()
    with _checkpoint.seeded(0):
        _checkpoint.initialise(net)
    conv4 = net.get_submodule("conv4")
    fc5 = net.get_submodule("fc5")
    assert float(conv4.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(fc5.weight.detach().std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert not fc5.bias.any()


def test_preprocessing_is_that_of_the_papers() -> None:
    for description, crop in ((zfnet, 224), (alexnet, 227), (caffenet, 227), (vgg16, 224)):
        given = description.PREPROCESSING
        assert (given.resize, given.crop) == (256, (crop, crop))
        assert (given.scale, given.std) == (1.0, (1.0, 1.0, 1.0))
    assert zfnet.PREPROCESSING.mean == (123.68, 116.779, 103.939)
    # Caffe's order is blue, green, red, and so is its mean.
    assert caffenet.PREPROCESSING.order == "BGR"
    assert caffenet.PREPROCESSING.mean == (104.007, 116.669, 122.679)
    assert (cifar.PREPROCESSING.resize, cifar.PREPROCESSING.crop) == (32, (32, 32))
