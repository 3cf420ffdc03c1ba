"""Stored switches and projections against full maps of the winning images, decoded again.

The oracles see whole images and plain modules: no window, record, shard or crop has a part in them,
and the place of a window in the image is worked out here a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from convnet import oracle
from torch import nn
from torch.nn import functional

import zfscale
from zfscale import job, models
from zfscale.analyses import deconvolve
from zfscale.analyses import switches as _switches
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.records import Preprocessing
from zfscale.runs.results import Results

K = 3
FEATURES = 20
"""Features in a shard of projections."""
SWITCHES = 160_000
"""Bytes in a shard of switches."""
ABSENT = 255
TOLERANCE = 1e-4
"""Largest difference, relative to the largest value of a projection."""


def build_bgr() -> tuple[nn.Module, Preprocessing]:
    """Nothing in it is square or symmetric: a swapped axis, channel or border shows."""
    module = nn.Sequential(
        nn.Conv2d(3, 24, (5, 3), stride=(2, 1), padding=(2, 1)),
        nn.ReLU(),
        nn.MaxPool2d((3, 2), stride=2, padding=(1, 0), ceil_mode=True),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=(1, 2)),
        nn.Conv2d(32, 26, (3, 2), stride=(2, 1), padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(26 * 5 * 12, 21),
    )
    mean, std = (0.3, 0.45, 0.6), (0.2, 0.25, 0.4)
    return module, Preprocessing(48, (40, 48), mean, std, 1 / 255, order="BGR")


LAYERS = {
    "zfscale:zfnet-mini": {"conv1": "relu1", "conv2": "relu2", "conv5": "relu5"},
    "zfscale:cifar": {"conv2": "relu2", "conv4": "relu4"},
    f"{__name__}:build_bgr": {"0": "1", "3": "4", "6": "7", "9": "9"},
}
"""Observed layers, and the module that returns what is observed."""


@dataclass(frozen=True)
class Unit:
    """A winner: a place in the results and in the network."""

    feature: int
    rank: int
    y: int
    x: int
    score: float
    image_id: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Run:
    """Results, and the plain module that they should come from."""

    results: Results
    module: nn.Sequential
    preprocessing: Preprocessing
    layers: dict[str, str]

    @cache  # noqa: B019  (ends with the module of tests)
    def input(self, image_id: str) -> torch.Tensor:
        """The network's input for an image, (1, 3, H, W), by the words of `Preprocessing`."""
        pixels = self.results.image(image_id).transpose(2, 0, 1).astype(np.float64)
        recipe = self.preprocessing
        ordered = {"RGB": pixels, "BGR": pixels[::-1]}[recipe.order]
        mean, std = (np.array(values)[:, None, None] for values in (recipe.mean, recipe.std))
        return torch.tensor((ordered * recipe.scale - mean) / std, dtype=torch.float32)[None]

    @cache  # noqa: B019
    def maps(self, image_id: str) -> dict[str, torch.Tensor]:
        """What every module returns for an image, (C, H, W) or (C,), and `input`."""
        x = self.input(image_id)
        maps = {"input": x[0]}
        with torch.no_grad():
            for name, module in self.module.named_children():
                x = module(x.clone())  # a rectification may work in place
                maps[name] = x[0]
        return maps

    def units(self, layer: str) -> list[Unit]:
        """All winners of a few features of every shard, and of some that win at the border."""
        rows = self.results.winners[self.results.winners["layer"] == layer]
        shape = self.results.layers[layer]
        at_border = rows["y"].isin([0, shape.height - 1]) | rows["x"].isin([0, shape.width - 1])
        some = {*range(0, shape.channels, 1 + shape.channels // 4), shape.channels - 1}
        some |= {*rows[at_border]["feature"].drop_duplicates()[:4]}
        names = ("feature", "rank", "y", "x", "score", "image_id")
        return [
            Unit(*(getattr(row, name) for name in names), (row.y0, row.x0, row.y1, row.x1))
            for row in rows[rows["feature"].isin(some)].itertuples(index=False)
        ]

    def window(self, layer: str, below: str, unit: Unit) -> list[tuple[int, int]]:
        """Rows and columns, (start, stop) each, of what module `below` (or `input`) returns.

        The unit depends on them; they may reach outside of the map. As in zfscale, a window as
        large as its map is the whole map, and so is all below it.
        """
        modules = dict(self.module.named_children())
        names, maps = ["input", *modules], self.maps(unit.image_id)
        spans: list[tuple[int, int] | None] = [(unit.y, unit.y + 1), (unit.x, unit.x + 1)]
        for at in range(names.index(self.layers[layer]), names.index(below), -1):
            for axis, size in enumerate(maps[names[at - 1]].shape[1:] or (1, 1)):
                span = _needed(modules[names[at]], axis, spans[axis])
                spans[axis] = span if span and span[1] - span[0] < size else None
        return [span or (0, size) for span, size in zip(spans, maps[below].shape[1:], strict=True)]


def _needed(module: nn.Module, axis: int, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """Positions of the module's input that a span of its output needs; None stands for all."""
    if span is None or isinstance(module, nn.Flatten | nn.Linear):
        return None
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return span
    kernel, stride, padding = _window(module, axis)
    start = span[0] * stride - padding
    return start, start + (span[1] - span[0] - 1) * stride + kernel


def _window(module: nn.Conv2d | nn.MaxPool2d, axis: int) -> list[int]:
    """Kernel, stride and padding along an axis."""
    given = (module.kernel_size, module.stride, module.padding)
    return [value[axis] if isinstance(value, tuple) else value for value in given]


@pytest.fixture(scope="module", params=LAYERS, ids=["zfnet-mini", "cifar", "bgr"])
def run(request, tmp_path_factory) -> Run:
    """The main job in many small tasks and shards, so that everything must find its place."""
    model, layers = request.param, LAYERS[request.param]
    folder = tmp_path_factory.mktemp("projections")
    parts.write(folder / "images", count=40, seed=1, shard_size=15)
    spec = {"run": str(folder / "run"), "images": str(folder / "images"), "batch": 8}
    spec |= {"model": model, "weights": "seed:0"}
    spec |= {"analyses": {"scan": {"layers": list(layers), "top_k": K}, "deconvolve": {}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_switches, "TASK_IMAGES", 16)
        patch.setattr(_switches, "SHARD_BYTES", SWITCHES)
        patch.setattr(deconvolve, "FEATURES", FEATURES)
        driver.run(resolve.resolve(job.Job.model_validate(spec)), Serial, lambda event: None)
    network = models.load(model, "seed:0")
    return Run(zfscale.open(spec["run"]), network.module, network.preprocessing, layers)


def test_projections(run: Run) -> None:
    height, width = run.preprocessing.crop
    compared = hanging = 0
    for layer, place in run.layers.items():
        assert run.results.projections(layer).shards[0] == FEATURES
        units = run.units(layer)
        found = {unit.feature: run.results.projection(layer, unit.feature) for unit in units}
        for unit in units:
            (top, bottom), (left, right) = run.window(layer, "input", unit)
            assert unit.box == (top, left, bottom, right)
            neuron, image = (unit.feature, unit.y, unit.x), run.input(unit.image_id)
            (whole,) = oracle.by_autograd(run.module, place, image, [neuron])
            if run.preprocessing.order == "BGR":
                whole = whole[::-1]
            true = _cut(whole, (top, bottom), (left, right), 0)
            assert np.count_nonzero(true) == np.count_nonzero(whole)
            shown = found[unit.feature][unit.rank].transpose(2, 0, 1)
            largest = np.abs(true).max()
            np.testing.assert_allclose(shown, true, 0, TOLERANCE * largest, err_msg=f"{unit}")
            compared += largest > 0
            hanging += top < 0 or left < 0 or bottom > height or right > width
    assert compared > 10 * len(run.layers)
    assert hanging >= 3


def test_scores(run: Run) -> None:
    for layer, place in run.layers.items():
        for unit in run.units(layer):
            maps = run.maps(unit.image_id)[place].reshape(run.results.layers[layer].channels, -1)
            strongest = float(maps[unit.feature].max())
            assert unit.score == pytest.approx(strongest, rel=TOLERANCE, abs=1e-6)


def test_switches(run: Run) -> None:
    modules = dict(run.module.named_children())
    names = list(modules)
    sharded = 0
    for layer, place in run.layers.items():
        below = names[: names.index(place)]
        for pool in (name for name in below if isinstance(modules[name], nn.MaxPool2d)):
            stored = run.results.switches(layer, pool)
            sharded += stored.shards[0] < stored.shape[0]
            before = names[names.index(pool) - 1]
            for unit in run.units(layer):
                whole = _switches_of(modules[pool], run.maps(unit.image_id)[before])
                true = _cut(whole, *run.window(layer, pool, unit), ABSENT)
                found = stored[unit.feature, unit.rank]
                np.testing.assert_array_equal(found, true, err_msg=f"{unit}, {pool}")
    assert sharded


def _switches_of(pool: nn.MaxPool2d, maps: torch.Tensor) -> np.ndarray:
    """All switches (C, h, w) of a pool over `maps` (C, H, W), by the indices of torch."""
    (_, row_stride, top), (width, stride, left) = (_window(pool, axis) for axis in (0, 1))
    _, index = functional.max_pool2d(
        maps[None], pool.kernel_size, pool.stride, pool.padding, 1, pool.ceil_mode, True
    )
    y, x = np.divmod(index[0].numpy(), maps.shape[2])
    down = y - (np.arange(y.shape[1]) * row_stride - top)[:, None]
    return down * width + x - (np.arange(x.shape[2]) * stride - left)


def _cut(
    maps: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], outside: int
) -> np.ndarray:
    """Rows and columns (start, stop) of maps (C, H, W), which they may leave."""
    y, x = np.arange(*rows), np.arange(*columns)
    height, width = maps.shape[1:]
    inside = ((y >= 0) & (y < height))[:, None] & (x >= 0) & (x < width)
    found = maps[:, y.clip(0, height - 1)][:, :, x.clip(0, width - 1)]
    return np.where(inside, found, outside)
