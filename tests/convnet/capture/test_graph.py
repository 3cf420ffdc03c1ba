"""What tracing finds: operations, shapes, paths, and where a rectified convolution is seen."""

from __future__ import annotations

import operator

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.graph import UntraceableError, trace


class Functions(nn.Module):
    """The same operations as functions and methods."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        x = functional.conv2d(x, self.weight, None, (2, 1), padding=1)
        bn = self.bn
        x = functional.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
        )
        x = functional.max_pool2d(functional.relu(x), 3, 2, ceil_mode=True)
        x = functional.local_response_norm(x, 5)
        x = torch.add(x, x.relu())
        x = operator.iadd(torch.cat((x, x), dim=1), torch.relu(torch.cat([x, x], 1)))
        x = functional.avg_pool2d(x, 2, padding=1)
        x = functional.dropout(x, 0.5, self.training).contiguous()
        x = x.mean((2, 3), keepdim=True)
        return functional.linear(x.view(x.size(0), -1), torch.ones(4, 16))


def kinds(graph):
    return [type(node.operation).__name__ for node in graph.nodes.values()]


def test_functions_and_methods_become_primitive_operations():
    graph = trace(Functions().eval(), (3, 16, 16))
    assert kinds(graph) == [
        *("Input", "Convolution", "BatchNorm", "Rectification", "MaxPool", "Normalisation"),
        *("Rectification", "Add", "Concatenation", "Concatenation", "Rectification", "Add"),
        *("AveragePool", "Identity", "Identity", "AveragePool", "Flatten", "Linear"),
    ]
    nodes = list(graph.nodes.values())
    assert nodes[1].operation.window == ops.Sliding((3, 3), (2, 1), (1, 1))
    assert nodes[4].operation == ops.MaxPool(ops.Sliding((3, 3), (2, 2)), ceil_mode=True)
    assert nodes[4].shape == (8, 4, 8)
    assert nodes[8].inputs == (nodes[7].name, nodes[7].name)
    assert nodes[-1].shape == (4,)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, padding=1),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d((2, 3), (3, 2), ceil_mode=True),
        nn.AvgPool2d(4, 3, padding=2, ceil_mode=True),
        nn.AvgPool2d(4, 3, padding=2, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveAvgPool2d((None, 5)),
        nn.AdaptiveAvgPool2d((20, 13)),
    ],
)
def test_the_matrices_of_an_average_pool_are_the_pool(pool):
    maps = torch.randn(1, 2, 11, 10)
    operation = trace(nn.Sequential(pool), (2, 11, 10)).nodes["0"].operation
    found = operation.rows @ maps @ operation.columns.T
    torch.testing.assert_close(found, pool(maps))


def test_batch_norm_is_its_linear_part():
    module = nn.BatchNorm2d(4).eval()
    module.weight.data.uniform_(-1, 1)
    module.running_var.uniform_(0.5, 2)
    module.running_mean.uniform_(-1, 1)
    operation = trace(nn.Sequential(module), (4, 3, 3)).nodes["0"].operation
    one, other = torch.randn(2, 1, 4, 3, 3)
    torch.testing.assert_close(
        (one - other) * operation.scale[:, None, None], module(one) - module(other)
    )


def test_same_padding_of_an_even_kernel():
    module = nn.Sequential(nn.Conv2d(3, 3, (4, 3), padding="same", dilation=(2, 1)))
    assert trace(module, (3, 9, 9)).nodes["0"].operation.window.padding == (3, 1)


def test_names_are_paths_of_modules_and_repeated_calls_get_their_own():
    graph = trace(torchvision.models.resnet18().eval(), (3, 64, 64))
    node = graph.nodes["layer1.0.relu"]
    assert node.module == "layer1.0.relu"
    again = graph.nodes[graph.modules["layer1.0.relu"]]
    assert again.name != node.name
    assert again.module == "layer1.0.relu"
    assert graph.modules["layer1.0"] == graph.modules["layer1.0.relu"]
    assert graph.rectified("layer2.0.conv2") == graph.modules["layer2.0"]
    assert graph.rectified("layer2.0.downsample.0") == graph.modules["layer2.0"]
    assert graph.nodes["add"].module == "layer1.0"


def test_where_nothing_rectifies_the_last_linear_place_is_seen():
    densenet = trace(torchvision.models.densenet121().eval(), (3, 64, 64))
    block = "features.denseblock1.denselayer1"
    assert densenet.rectified(f"{block}.conv1") == f"{block}.relu2"
    assert densenet.rectified(f"{block}.conv2") == f"{block}.conv2"
    mobile = trace(torchvision.models.mobilenet_v2().eval(), (3, 64, 64))
    assert mobile.rectified("features.1.conv.1") == "features.1.conv.2"  # the batch norm
    assert mobile.rectified("features.0.0") == "features.0.2"  # ReLU6


def test_auxiliary_branches_take_no_part():
    graph = trace(torchvision.models.googlenet(init_weights=False).eval(), (3, 64, 64))
    assert not [name for name in graph.modules if name.startswith("aux")]


class InPlace(nn.Module):
    def forward(self, x):
        x = x * 1
        x.relu_()
        return x + 1


def test_a_value_changed_in_place_is_the_changed_value_from_then_on():
    graph = trace(InPlace(), (3, 4, 4))
    assert graph.nodes["add"].inputs == ("relu_",)


class Unusual(nn.Module):
    """Calls that torch accepts and hardly anybody writes."""

    def __init__(self, call):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.average, self.adaptive = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.call = call

    def forward(self, x):
        return self.call(self, torch.relu(input=self.conv(input=x)))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: x.mean((2, 3), dtype=torch.float32),
        lambda m, x: torch.mean(x, axis=(2, 3), keepdims=True),
        lambda m, x: torch.cat([x, x], axis=1),
        lambda m, x: torch.reshape(x, shape=(2, -1)),
        lambda m, x: x.view(size=(2, -1)),
        lambda m, x: x.view(torch.int32),
        lambda m, x: m.average(x.flatten(2)),
        lambda m, x: m.adaptive(x.flatten(2)),
    ],
)
def test_an_unusual_call_is_opaque_and_the_rest_is_understood(call):
    graph = trace(Unusual(call), (3, 8, 8))
    assert kinds(graph)[:3] == ["Input", "Convolution", "Rectification"]
    assert graph.nodes["conv"].inputs == (graph.input,)
    assert kinds(graph)[-1] == "Opaque"


def test_what_it_does_not_know_is_opaque_and_keeps_its_name():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32).eval()
    graph = trace(vit, (3, 32, 32))
    opaque = {n.operation.name for n in graph.nodes.values() if isinstance(n.operation, ops.Opaque)}
    assert {"MultiheadAttention", "LayerNorm", "getitem"} <= opaque


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1)),
        nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.AvgPool2d(2, divisor_override=3)),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 1, 1)),
        nn.Sequential(nn.Linear(8, 8)),
    ],
)
def test_variants_with_another_meaning_are_opaque(module):
    graph = trace(module.eval(), (3, 8, 8))
    assert isinstance(list(graph.nodes.values())[-1].operation, ops.Opaque)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Alias(nn.Module):
    """Torch changes x here; the stand-ins of torch.fx do not."""

    def forward(self, x):
        y = x * 1
        z = y
        z += 1
        return y


@pytest.mark.parametrize(("module", "why"), [(Undecided(), "control flow"), (Alias(), "else")])
def test_says_why_it_cannot_trace(module, why):
    with pytest.raises(UntraceableError, match=why):
        trace(module, (3, 4, 4))
