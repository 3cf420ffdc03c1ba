"""The table of layers against sizes, strides and receptive fields worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from zfscale import models
from zfscale.convnet.network import Network
from zfscale.records import Preprocessing

SMALL = Preprocessing(resize=None, crop=(16, 16), mean=(0.0, 0.0, 0.0))


def test_zfnet_as_a_table() -> None:
    rows = {row.name: row for row in models.table(models.load("zfscale:zfnet", "seed:0"))}
    # Jumps and fields of Fig. 3: 7/2, 3/2, 5/2, 3/2, then three times 3/1.
    expected = {
        "conv1": ("convolution", 96, 110, 2, 7),
        "pool1": ("max pool", 96, 55, 4, 11),
        "norm1": ("normalisation", 96, 55, 4, 11),
        "conv2": ("convolution", 256, 26, 8, 27),
        "pool2": ("max pool", 256, 13, 16, 43),
        "conv3": ("convolution", 384, 13, 16, 75),
        "conv4": ("convolution", 384, 13, 16, 107),
        "conv5": ("convolution", 256, 13, 16, 139),
        "pool5": ("max pool", 256, 6, 32, 171),
    }
    for name, (kind, channels, side, stride, field) in expected.items():
        row = rows[name]
        assert (row.kind, row.channels, row.height, row.width) == (kind, channels, side, side)
        assert (row.stride, row.field) == ((stride, stride), (field, field)), name
    assert (rows["fc6"].kind, rows["fc6"].channels, rows["fc6"].height) == ("linear", 4096, 1)
    assert [name for name, row in rows.items() if row.observed] == [f"conv{i}" for i in range(1, 6)]
    assert "drop6" not in rows


def test_functions_are_layers_too() -> None:
    rows = models.table(models.load("torchvision:resnet18", "seed:0"))
    kinds = {row.kind for row in rows}
    assert {"convolution", "batch norm", "rectification", "add", "average pool"} <= kinds
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    assert names.index("conv1") < names.index("layer1.0.conv1") < names.index("fc")


class Untraceable(nn.Module):
    """Its flow depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.never = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.mean() > 0:
            x = x * 2
        return self.head(x.mean((2, 3)))


def test_a_net_that_cannot_be_traced_has_its_modules() -> None:
    rows = models.table(Network(Untraceable(), SMALL))
    assert [(row.name, row.kind, row.channels, row.height) for row in rows] == [
        ("first", "Conv2d", 4, 14),
        ("head", "Linear", 2, 1),
    ]
    assert [row.observed for row in rows] == [True, False]
    assert all(row.stride is None and row.field is None for row in rows)
