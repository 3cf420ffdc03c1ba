"""Fields against brute force: which outputs change, and which inputs matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from convnet.oracle import receptive_field
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zfscale.convnet.capture.geometry import reached, spatial_size, windows
from zfscale.convnet.capture.graph import trace
from zfscale.errors import UnsupportedOperation
from zfscale.records import Box


class Join(nn.Module):
    """The sum or the concatenation of branches, cut to the smallest by their parameters."""

    def __init__(self, branches, how):
        super().__init__()
        self.branches, self.how = nn.ModuleList(branches), how

    def forward(self, x):
        parts = [branch(x) for branch in self.branches]
        return torch.cat(parts, 1) if self.how == "cat" else parts[0] + parts[1]


@st.composite
def sliding(draw):
    k = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return {
        "kernel_size": k,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        "padding": (draw(st.integers(0, k[0] // 2)), draw(st.integers(0, k[1] // 2))),
    }


@st.composite
def nets(draw):
    """Random nets whose every weight is positive, so that what can matter does matter.

    Pools are averages here: the field of a max pool is the same, but only one input matters.
    """
    channels, modules = 1, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "dilated", "grouped", "pool", "add", "cat", "bn"]))
        if kind in {"conv", "dilated", "grouped"}:
            how = draw(sliding()) | {"dilation": 2 if kind == "dilated" else 1}
            groups = channels if kind == "grouped" else 1
            modules.append(nn.Conv2d(channels, 2 * channels, groups=groups, **how))
            channels *= 2
        elif kind == "pool":
            modules.append(nn.AvgPool2d(**draw(sliding()), ceil_mode=draw(st.booleans())))
        elif kind in {"add", "cat"}:
            wide = draw(st.sampled_from([3, 5]))
            stride = draw(st.integers(1, 2))
            branches = [
                nn.Conv2d(channels, channels, k, stride=stride, padding=k // 2) for k in (1, wide)
            ]
            modules.append(Join(branches, kind))
            channels *= 2 if kind == "cat" else 1
        else:
            modules += [nn.BatchNorm2d(channels), nn.ReLU()]
    module = nn.Sequential(*modules).eval().double()
    for parameter in module.parameters():
        parameter.data.abs_().add_(0.1)
    return module


SIDE = (17, 14)


def trace_or_skip(module):
    from hypothesis import assume

    try:
        module(torch.ones(1, 1, *SIDE, dtype=torch.double))
    except RuntimeError:  # the map became smaller than a kernel
        assume(False)
    return trace(module, (1, *SIDE))


def projective_field(graph, box, name):
    """The smallest box of the units that a box of the input reaches, or None."""
    sides = (slice(box.y0, box.y1), slice(box.x0, box.x1))
    masks = [np.zeros((1, size), bool) for size in spatial_size(graph.nodes[graph.input])]
    for mask, side in zip(masks, sides, strict=True):
        mask[0, side] = True
    rows, columns = reached(graph, graph.input, *masks, name)[name]
    return hull(torch.from_numpy(rows[0][:, None] & columns[0]))


def hull(matters):
    """The smallest box of the positions (H, W) that are true."""
    if not matters.any():
        return None
    rows, columns = matters.any(1).nonzero(), matters.any(0).nonzero()
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


@given(nets(), st.data())
def test_receptive_field_is_where_the_gradient_is(module, data):
    graph = trace_or_skip(module)
    name = list(graph.nodes)[-1]
    _, height, width = graph.nodes[name].shape
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image = torch.ones(1, 1, *SIDE, dtype=torch.double, requires_grad=True)
    module(image)[0, :, y, x].sum().backward()
    assert receptive_field(graph, name, y, x) == hull(image.grad[0, 0] != 0)


@given(nets(), st.data())
def test_projective_field_is_what_changes(module, data):
    graph = trace_or_skip(module)
    name = list(graph.nodes)[-1]
    y, x = data.draw(st.integers(0, SIDE[0] - 1)), data.draw(st.integers(0, SIDE[1] - 1))
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    box = Box(y, x, min(y + height, SIDE[0]), min(x + width, SIDE[1]))
    image = torch.ones(1, 1, *SIDE, dtype=torch.double)
    changed = image.clone()
    changed[:, :, box.y0 : box.y1, box.x0 : box.x1] += 1
    with torch.no_grad():
        differs = (module(image) != module(changed))[0].any(0)
    assert projective_field(graph, box, name) == hull(differs)


@given(nets())
def test_the_window_of_a_unit_clipped_holds_its_receptive_field(module):
    graph = trace_or_skip(module)
    name = list(graph.nodes)[-1]
    below = windows(graph, name)
    _, height, width = graph.nodes[name].shape
    for y in {0, height // 2, height - 1}:
        for x in {0, width // 2, width - 1}:
            for node in graph.ancestors(name):
                box = receptive_field(graph, name, y, x, node)
                top, left = below[node].origin(y, x)
                if box is not None:
                    assert top <= box.y0
                    assert left <= box.x0
                    assert top + below[node].size[0] >= box.y1
                    assert left + below[node].size[1] >= box.x1


def test_windows_of_a_chain_by_hand():
    graph = trace(
        nn.Sequential(
            nn.Conv2d(3, 4, 7, stride=2, padding=1), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 5)
        ),
        (3, 99, 99),
    )
    below = windows(graph, "2")
    assert (below["1"].size, below["1"].stride, below["1"].offset) == ((5, 5), (1, 1), (0, 0))
    assert (below["0"].size, below["0"].stride, below["0"].offset) == ((11, 11), (2, 2), (0, 0))
    pixels = below[graph.input]
    assert (pixels.size, pixels.stride, pixels.offset) == ((27, 27), (4, 4), (-1, -1))
    assert pixels.origin(3, 0) == (11, -1)


def test_a_window_as_large_as_the_map_is_the_map():
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 5)), (3, 6, 40))
    pixels = windows(graph, "1")[graph.input]
    assert (pixels.size, pixels.stride, pixels.offset) == ((6, 9), (0, 1), (0, -2))
    assert windows(graph, "1", whole=False)[graph.input].size == (9, 9)


def test_a_fully_connected_unit_sees_everything():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    graph = trace(module, (3, 9, 8))
    assert receptive_field(graph, "3", 0, 0) == Box(0, 0, 9, 8)
    assert windows(graph, "3")[graph.input].size == (9, 8)
    assert projective_field(graph, Box(0, 0, 1, 1), "3") == Box(0, 0, 1, 1)
    assert spatial_size(graph.nodes["3"]) == (1, 1)


def test_adaptive_pooling_with_unequal_windows():
    graph = trace(nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))), (1, 5, 4))
    assert receptive_field(graph, "0", 1, 1) == Box(2, 1, 5, 3)


def test_names_what_it_cannot_pass():
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2)), (3, 8, 8))
    for ask in (
        lambda: windows(graph, "1"),
        lambda: projective_field(graph, Box(0, 0, 1, 1), "1"),
    ):
        with pytest.raises(UnsupportedOperation, match=r"node 1 \(module 1\): Upsample"):
            ask()
