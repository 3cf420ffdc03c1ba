"""Layers, activations and switches of one forward pass, for traced and untraced networks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from zfscale.convnet.capture import geometry
from zfscale.convnet.deconvolution import switches
from zfscale.convnet.network import Network
from zfscale.errors import UnsupportedOperation, UsageError
from zfscale.models.networks import zfnet
from zfscale.records import Preprocessing

SQUARE = Preprocessing(32, (32, 32), (127.5,) * 3, (127.5,) * 3)
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(6 * 49, 5),
        nn.ReLU(inplace=True),
        nn.Linear(5, 4),
    )


class Undecided(nn.Module):
    """Cannot be traced, for it decides by what it sees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.relu(self.conv(x))
        if x.sum() < 0:
            x = -x
        return self.head(x.mean((2, 3)))


def shown(network, layers, pools=()):
    """All that a forward pass shows, copied, and its output."""
    seen = {}

    def visit(name, values):
        assert name not in seen
        seen[name] = values.clone()

    output = network.forward(PIXELS, layers, visit, pools, visit)
    return seen, output


def test_default_layers_are_convolutions_after_rectification():
    layers = Network(small(), SQUARE).layers
    assert [(layer.name, layer.node) for layer in layers] == [("0", "1"), ("3", "5")]
    assert (layers[1].channels, layers[1].height, layers[1].width) == (6, 14, 14)
    assert (layers[1].stride, layers[1].field) == ((2, 2), (8, 8))


def test_layers_of_zfnet():
    layers = Network(zfnet.build(classes=2), zfnet.PREPROCESSING).layers
    assert [layer.name for layer in layers] == [f"conv{i}" for i in range(1, 6)]
    assert [layer.height for layer in layers] == [110, 26, 13, 13, 13]
    assert [layer.field[0] for layer in layers] == [7, 27, 75, 107, 139]


def test_a_residual_block_ends_in_one_layer():
    network = Network(torchvision.models.resnet18(), SQUARE)
    names = [layer.name for layer in network.layers]
    assert "layer2.0.conv2" in names
    assert "layer2.0.downsample.0" not in names
    assert len({layer.node for layer in network.layers}) == len(names) == 17


def test_shows_what_the_modules_give_and_the_logits():
    module = small()
    network = Network(module, SQUARE)
    layers = [network.layer(name) for name in ("0", "3", "4", "5", "8", "9")]
    seen, output = shown(network, layers)
    with torch.inference_mode():
        image = network.normalise(PIXELS)
        expected = {"0": module[:2](image), "3": module[:6](image), "4": module[:5](image)}
        expected |= {"5": expected["3"], "8": module[:9](image)[:, :, None, None]}
        expected |= {"9": expected["8"].relu()}
        torch.testing.assert_close(output, module(image))
    for name in ("0", "3", "4", "5"):
        assert torch.equal(seen[name], expected[name]), name
    for name in ("8", "9"):  # fully connected: another order of additions
        torch.testing.assert_close(seen[name], expected[name])
    assert (seen["4"] < 0).any()  # seen before the ReLU wrote over it
    assert network.classes == 4


def test_tokens_are_shown_along_the_width():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=4)
    network = Network(vit, SQUARE)
    layer = network.layer("encoder.layers.encoder_layer_0.mlp")
    assert (layer.channels, layer.height, layer.width) == (16, 1, 17)
    assert (layer.stride, layer.field) == (None, None)
    seen, output = shown(network, [layer])
    assert seen[layer.name].shape == (3, 16, 1, 17)
    with torch.inference_mode():
        assert torch.equal(output, network.module(network.normalise(PIXELS)))
    with pytest.raises(UnsupportedOperation, match="encoder_layer_0"):
        network.window(layer)


def test_a_network_that_cannot_be_traced_is_still_observed():
    network = Network(Undecided(), SQUARE)
    assert network.graph is None
    assert "control flow" in network.untraceable
    assert [layer.name for layer in network.layers] == ["conv"]
    seen, output = shown(network, [network.layer("conv"), network.layer("head")])
    with torch.inference_mode():
        image = network.normalise(PIXELS)
        assert torch.equal(seen["conv"], network.module.conv(image))
        assert torch.equal(seen["head"][:, :, 0, 0], output)
    assert not network.module.conv._forward_hooks
    with pytest.raises(UnsupportedOperation, match=r"cannot trace it: .*control flow"):
        network.pool_windows(network.layers[0])


def gradients(network, layers, image):
    """The output, and the gradients of its first logits by the image and by what is shown."""
    seen = {}
    image = image.clone().requires_grad_()
    with torch.inference_mode():  # whatever the mode around it
        output = network.run(image, layers, seen.__setitem__, gradients=True)
    names = list(seen)
    found = torch.autograd.grad(output[:, 0].sum(), [image, *(seen[name] for name in names)])
    return output, dict(zip(["image", *names], found, strict=True))


def expected_gradients(module, cuts, image):
    """The same by running a chain of modules in two parts, cut where each layer is shown."""
    found = {}
    for name, at in {"image": 0, **cuts}.items():
        with torch.no_grad():
            below = module[:at](image.clone())
        below.requires_grad_()
        (found[name],) = torch.autograd.grad(module[at:](below.clone())[:, 0].sum(), below)
    return found


def test_gradients_by_the_image_and_by_layers_are_those_of_the_module():
    """Also of layers that an operation in place would overwrite, and of fully connected ones."""
    module = small()
    network = Network(module, SQUARE)
    cuts = {"0": 2, "3": 6, "4": 5, "8": 9, "9": 10}
    image = network.normalise(PIXELS)
    output, found = gradients(network, [network.layer(name) for name in cuts], image)
    assert torch.equal(output, module(image.clone()))
    for name, expected in expected_gradients(module, cuts, image).items():
        assert expected.any(), name
        torch.testing.assert_close(found[name].reshape(expected.shape), expected, msg=name)
    assert network.run(image).is_inference()


def test_gradients_without_asking_for_those_of_the_image_or_the_weights():
    network = Network(small().requires_grad_(False), SQUARE)
    seen = {}
    output = network.forward(PIXELS, network.layers, seen.__setitem__, gradients=True)
    (found,) = torch.autograd.grad(output.sum(), seen["0"])
    assert found.any()


def test_gradients_of_a_network_that_cannot_be_traced():
    network = Network(Undecided(), SQUARE)
    image = network.normalise(PIXELS)
    _, found = gradients(network, [network.layer("conv"), network.layer("head")], image)
    plain = image.clone().requires_grad_()
    conv = network.module.conv(plain)
    conv.retain_grad()
    network.module.head(conv.relu().mean((2, 3)))[:, 0].sum().backward()
    torch.testing.assert_close(found["image"], plain.grad)
    torch.testing.assert_close(found["conv"], conv.grad)
    assert found["head"][:, :, 0, 0].tolist() == [[1, 0, 0, 0]] * 3


def test_gradients_of_tokens():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=4)
    nn.init.normal_(vit.heads.head.weight)
    network = Network(vit, SQUARE)
    layer = network.layer("encoder.ln")
    _, found = gradients(network, [layer], network.normalise(PIXELS))
    tokens = found["encoder.ln"]
    assert tokens.shape == (3, 16, 1, 17)
    torch.testing.assert_close(tokens[:, :, 0, 0], vit.heads.head.weight[:1].expand(3, 16))
    assert not tokens[:, :, :, 1:].any()  # the class rests on the first token


class Wavering(Undecided):
    """Runs a layer twice, and another one only for images of one colour."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        seen = self.twice(self.twice(self.relu(self.conv(x))))
        if x.amax() == x.amin():
            seen = seen + self.unused(x).sum()
        return self.head(seen.mean((2, 3)))


def test_of_a_layer_that_runs_twice_the_last_run_is_shown():
    network = Network(Wavering(), SQUARE)
    assert network.graph is None
    (layer,) = [layer for layer in network.layers if layer.name == "twice"]
    seen, _ = shown(network, [layer])  # which fails if it is shown twice
    with torch.inference_mode():
        once = network.module.twice(network.module.conv(network.normalise(PIXELS)).relu())
        assert torch.equal(seen["twice"], network.module.twice(once))


def test_a_layer_that_does_not_always_run_is_named():
    network = Network(Wavering(), SQUARE)
    with pytest.raises(UsageError, match=r"unused of network was called 0 times .* but 1 times"):
        shown(network, [network.layer("unused")])


def test_switches_of_all_pools_in_one_pass():
    network = Network(small(), SQUARE)
    layer = network.layers[1]
    assert list(network.pool_windows(layer)) == ["2"]
    assert network.switch_shapes(layer) == {"2": (8, 3, 3)}
    assert network.switch_shapes(network.layer("8")) == {"2": (8, 16, 16), "6": (6, 7, 7)}
    seen, _ = shown(network, network.layers, ["2", "6"])
    for pool, maps, how in (
        ("2", seen["0"], ((2, 2), (2, 2), (0, 0), (1, 1), False)),
        ("6", seen["3"], ((3, 3), (2, 2), (0, 0), (1, 1), True)),
    ):
        assert torch.equal(seen[pool], switches.find(maps, *how))
    assert network.window(layer) == geometry.Window((8, 8), (2, 2), (-1, -1))


def test_normalises_as_the_preprocessing_says():
    recipe = Preprocessing(32, (32, 32), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 1 / 255, order="BGR")
    found = Network(small(), recipe).normalise(PIXELS)
    assert found.is_contiguous(memory_format=torch.channels_last)
    bgr = PIXELS[:, [2, 1, 0]].double() / 255
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (recipe.mean, recipe.std))
    torch.testing.assert_close(found.double(), (bgr - mean) / std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("module", [small(), Undecided()])
def test_unknown_layers_are_named_with_the_close_ones(module):
    network = Network(module, SQUARE)
    with pytest.raises(UsageError, match="layer conv9: network has no such module; it has "):
        network.layer("conv9")


def test_layers_without_features_say_so():
    with pytest.raises(UsageError, match="unused of network is never called, or does not return"):
        Network(Undecided(), SQUARE).layer("unused")
    network = Network(torchvision.models.googlenet(init_weights=False), SQUARE)
    with pytest.raises(UsageError, match="aux1 of network is never called"):
        network.layer("aux1")


def test_a_module_that_does_not_take_the_images_is_named():
    with pytest.raises(UsageError, match=r"does not take images \(B, 3, 32, 32\)"):
        Network(nn.Conv2d(4, 4, 3), SQUARE, "mine")


def test_a_module_that_returns_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UsageError, match="mine returns tuple"):
        Network(Pair(), SQUARE, "mine")
