"""Incremental inference against running the network on every occluded image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from zfscale import models
from zfscale.convnet.capture import operations as ops
from zfscale.convnet.incremental import differences, occlusion
from zfscale.convnet.incremental import inference as incremental
from zfscale.convnet.incremental.inference import Grid, Incremental, Sweep
from zfscale.convnet.network import Network
from zfscale.errors import UnsupportedOperation
from zfscale.records import Preprocessing

MEMORY = 64 << 20
GREY = torch.zeros(3)


def photo(network: Network) -> torch.Tensor:
    """A normalised image (1, 3, H, W) that is smooth, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    height, width = network.preprocessing.crop
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic")
    return network.normalise((smooth * 255).clamp(0, 255).to(torch.uint8))


def literally(
    network: Network, node: str, image: torch.Tensor, grid: Grid, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of a node (P, C, h, w) and the output (P, ...), one occluded image at a time."""
    maps, outputs = [], []
    module = network.traced.source[node]
    for top, bottom in grid.rows:
        for left, right in grid.columns:
            occluded = image.clone()
            occluded[:, :, top:bottom, left:right] = value[:, None, None]
            known = Values(network.module, network.traced.program, module)
            outputs.append(known.run(occluded)[0])
            maps.append(known.seen[0])
    return torch.stack(maps), torch.stack(outputs)


class Values(torch.fx.Interpreter):
    """Runs the plain program of a network, and copies what one node gives."""

    def __init__(self, module: nn.Module, program: torch.fx.Graph, node: torch.fx.Node) -> None:
        super().__init__(module, graph=program)
        self.node = node

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        if n is self.node:
            self.seen = result.clone()
        return result


def incrementally(
    network: Network, node: str, image: torch.Tensor, grid: Grid, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by incremental inference, in one block or in several."""
    engine = Incremental(network, [node, network.traced.output])
    memory = engine.remember(image)
    sweep = Sweep(engine, grid, MEMORY)
    whole = (0, len(grid.rows)), (0, len(grid.columns))
    changes = sweep.run(memory, value, *whole)
    positions = len(grid.rows) * len(grid.columns)
    found = []
    for name in (node, network.traced.output):
        maps = memory[name].permute(2, 0, 1).repeat(positions, 1, 1, 1)
        change = changes[name]
        for place in range(positions):
            y, x = divmod(place, len(grid.columns))
            for u in (change.rows.owner == y).nonzero()[:, 0]:
                for v in (change.columns.owner == x).nonzero()[:, 0]:
                    at = change.rows.place[u], change.columns.place[v]
                    maps[place, :, at[0], at[1]] += change.values[u, v]
        found.append(maps)
    return found[0], found[1]


def check_equal(network: Network, grid: Grid, value: torch.Tensor = GREY) -> None:
    """Both ways agree: 1e-5 of the largest activation, 1e-5 of a probability, the same class."""
    node = str(network.layers[-1].node)
    image = photo(network)
    with torch.inference_mode():
        maps, outputs = literally(network, node, image, grid, value)
        again, scores = incrementally(network, node, image, grid, value)
    assert again.view(maps.shape).sub(maps).abs().max() <= 1e-5 * maps.abs().max().clamp(min=1e-6)
    scores = scores.view(outputs.shape)
    assert scores.sub(outputs).abs().max() <= 1e-5 * outputs.abs().max().clamp(min=1e-6)
    if outputs.ndim == 2:
        assert scores.softmax(1).sub(outputs.softmax(1)).abs().max() <= 1e-5
        clear = outputs.topk(2).values
        certain = clear[:, 0] - clear[:, 1] > 1e-5 * outputs.abs().max()
        assert (scores.argmax(1) == outputs.argmax(1))[certain].all()


def network_of(module: nn.Module, height: int, width: int) -> Network:
    mean = (120.0, 115.0, 105.0)
    return Network(module, Preprocessing(None, (height, width), mean, (60.0, 60.0, 60.0)))


# Networks at random


def initialised(module: nn.Module, seed: int) -> nn.Module:
    """Weights and statistics at random, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = math.prod(part.weight.shape[1:])
            part.weight.data.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if part.bias is not None:
                part.bias.data.normal_(0, 0.1, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.2, generator=generator)
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


class Residual(nn.Module):
    """x + f(x), the way of a residual block."""

    def __init__(self, channels: int, kernel: int, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.conv(x)) + x)


class Branches(nn.Module):
    """Two ways of different reach, side by side along the channels."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, 4, 1)
        self.wide = nn.Conv2d(channels, 5, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = functional.relu(self.narrow(x))
        return torch.cat([narrow, functional.max_pool2d(narrow, 3, 1, 1), self.wide(x)], 1)


@st.composite
def bodies(draw: st.DrawFn) -> list[nn.Module]:
    """Two to six operations on maps that stay at least 3 x 3."""
    height, width, channels = draw(st.integers(14, 30)), draw(st.integers(14, 30)), 3
    parts: list[nn.Module] = []
    x = torch.zeros(1, channels, height, width)
    for number in range(draw(st.integers(2, 6))):
        kinds = ["conv", "pool", "rectified", "average", "norm", "residual", "branches", "lrn"]
        kinds.append("pointwise")
        kind = "conv" if number == 0 else draw(st.sampled_from(kinds))
        part = draw(layers(kind, x.shape[1]))
        try:
            y = part.eval()(x)
        except RuntimeError:  # smaller than its kernel
            continue
        if min(y.shape[2:]) >= 3:
            x, parts = y, [*parts, part]
    if not any(isinstance(part, nn.Conv2d) for part in parts):
        parts.append(nn.Conv2d(x.shape[1], 4, 3, padding=1))
    return [*parts, nn.Identity(), torch.nn.Flatten(), nn.Upsample(size=(height, width))]


@st.composite
def layers(draw: st.DrawFn, kind: str, channels: int) -> nn.Module:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    match kind:
        case "conv":
            groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
            return nn.Conv2d(
                channels,
                groups * draw(st.integers(1, 12 // groups + 1)),
                kernel,
                stride,
                draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
                draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
                groups,
            )
        case "pool":
            padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=draw(st.booleans()))
        case "rectified":
            pool = nn.MaxPool2d(kernel, stride, ceil_mode=draw(st.booleans()))
            return nn.Sequential(nn.ReLU(inplace=draw(st.booleans())), pool)
        case "average":
            padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
            ceil, counted = draw(st.booleans()), draw(st.booleans())
            return nn.AvgPool2d(kernel, stride, padding, ceil, counted)
        case "norm":
            return nn.BatchNorm2d(channels)
        case "residual":
            return Residual(channels, draw(st.sampled_from([1, 3, 5])), draw(st.booleans()))
        case "branches":
            return Branches(channels, draw(st.sampled_from([3, 5])))
        case "lrn":
            return nn.LocalResponseNorm(draw(st.integers(1, 5)), alpha=0.01, k=2.0)
    pointwise = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.PReLU(channels), nn.SiLU()]
    return draw(st.sampled_from(pointwise))


@st.composite
def heads(draw: st.DrawFn, channels: int, height: int, width: int) -> list[nn.Module]:
    """From maps to logits: fully connected, through an average, or maps of classes."""
    match draw(st.sampled_from(["linear", "two", "average", "uneven", "none"])):
        case "linear":
            return [nn.Flatten(), nn.Linear(channels * height * width, 7)]
        case "two":
            first = nn.Linear(channels * height * width, 9)
            return [nn.Dropout(), nn.Flatten(), nn.Dropout(), first, nn.ReLU(), nn.Linear(9, 7)]
        case "average":
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7)]
        case "uneven":
            size = max(1, height - 1), max(1, width - 2)
            count = channels * size[0] * size[1]
            return [nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.ReLU(), nn.Linear(count, 7)]
    return [nn.Conv2d(channels, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    *parts, _, _, size = draw(bodies())
    height, width = size.size
    with torch.no_grad():
        shape = nn.Sequential(*parts).eval()(torch.zeros(1, 3, height, width)).shape
    parts += draw(heads(*shape[1:]))
    return network_of(initialised(nn.Sequential(*parts), draw(st.integers(0, 99))), height, width)


@st.composite
def grids(draw: st.DrawFn, height: int, width: int) -> Grid:
    """A few rows and columns, borders among them, of occluders of some size."""
    rows, columns = (
        sorted({(at, min(at + size, whole)) for at in (0, whole - 1, *somewhere)})
        for whole, size, somewhere in (
            (
                whole,
                draw(st.integers(1, whole)),
                draw(st.lists(st.integers(0, whole - 1), max_size=3)),
            )
            for whole in (height, width)
        )
    )
    return Grid(tuple(rows), tuple(columns))


@settings(max_examples=60)
@given(data=st.data())
def test_random_networks(data: st.DataObject) -> None:
    network = data.draw(networks())
    grid = data.draw(grids(*network.preprocessing.crop))
    value = torch.tensor(data.draw(st.sampled_from([(0.0, 0.0, 0.0), (1.5, -0.5, 0.3)])))
    with pytest.MonkeyPatch.context() as patch:
        # Thin layers, as those of these networks are, take both ways.
        patch.setattr(incremental, "LEAST_CHANNELS", data.draw(st.sampled_from([1, 1000])))
        patch.setattr(differences, "PORTION", data.draw(st.sampled_from([1, 16 << 20])))
        check_equal(network, grid, value)


# Networks that people use

NETWORKS = (
    "zfscale:zfnet",
    "zfscale:alexnet",
    "zfscale:cifar",
    "torchvision:alexnet",
    "torchvision:vgg16",
    "torchvision:vgg16_bn",
    "torchvision:squeezenet1_1",
    "torchvision:resnet18",
    "torchvision:googlenet",
)


def some(grid: Grid, down: int, across: int) -> Grid:
    """The first and the last of its rows and columns, and one between."""
    rows = {*grid.rows[:down], grid.rows[len(grid.rows) // 2], *grid.rows[-down:]}
    columns = {*grid.columns[:across], *grid.columns[-across:]}
    return Grid(tuple(sorted(rows)), tuple(sorted(columns)))


def grid_of(network: Network, size: int, stride: int) -> Grid:
    return occlusion.grid(network.preprocessing.crop, (size, size), (stride, stride))


@pytest.mark.parametrize(("size", "stride"), [(16, 4), (5, 17), (27, 7)])
@pytest.mark.parametrize(
    "name", ["zfscale:zfnet", "zfscale:cifar", "torchvision:resnet18", "torchvision:squeezenet1_1"]
)
def test_networks(name: str, size: int, stride: int) -> None:
    network = models.load(name, "seed:0", "cpu")
    check_equal(network, some(grid_of(network, size, stride), 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_at_every_stride(name: str) -> None:
    network = models.load(name, "seed:0", "cpu")
    tame(network)
    for stride in range(1, 18):
        size = 1 + 13 * stride % 29
        check_equal(network, some(grid_of(network, size, stride), 1, 1))


def tame(network: Network) -> None:
    """Shrink logits of tens, which random weights give, to those of a trained network: where
    they are large the rounding of either way shows in the probabilities.
    """
    last = [m for m in network.module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    with torch.inference_mode():
        largest = network.run(photo(network)).abs().max()
    if largest > 10:
        last.weight.data.mul_(10 / float(largest))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_memory_formats(layout: torch.memory_format) -> None:
    network = models.load("torchvision:resnet18", "seed:0", "cpu")
    network.module.to(memory_format=layout)
    grid = Grid(((0, 16), (100, 116), (212, 224)), ((0, 16), (208, 224)))
    node, image = str(network.layers[-1].node), photo(network).contiguous(memory_format=layout)
    with torch.inference_mode():
        maps, outputs = literally(network, node, image, grid, GREY)
        again, scores = incrementally(network, node, image, grid, GREY)
    assert torch.allclose(again, maps, rtol=0, atol=1e-5 * float(maps.abs().max()))
    assert torch.allclose(scores.view(outputs.shape), outputs, rtol=0, atol=1e-4)


def test_an_occluder_of_the_image_s_own_colour_changes_nothing() -> None:
    network = models.load("torchvision:resnet18", "seed:0", "cpu")
    image = network.normalise(torch.full((1, 3, 224, 224), 77, dtype=torch.uint8))
    engine = Incremental(network, [network.traced.output])
    sweep = Sweep(engine, grid_of(network, 16, 100), MEMORY)
    changes = sweep.run(engine.remember(image), image[0, :, 0, 0], (0, 2), (0, 2))
    assert not changes[network.traced.output].values.any()


def test_what_is_not_asked_for_is_not_computed() -> None:
    network = models.load("zfscale:cifar", "seed:0", "cpu")
    layer = str(network.layers[-1].node)
    nodes = network.traced.nodes
    whole = Incremental(network, [network.traced.output]).order
    assert any(isinstance(nodes[name].operation, ops.Linear) for name in whole)
    alone = Incremental(network, [layer]).order
    assert alone[-1] == layer
    assert not any(isinstance(nodes[name].operation, ops.Linear) for name in alone)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x * x.mean((2, 3), keepdim=True)).flatten(1)


def test_an_operation_that_cannot_be_followed_is_named() -> None:
    network = network_of(Gate(), 12, 12)
    with pytest.raises(UnsupportedOperation, match="mul"):
        Incremental(network, [network.traced.output])
