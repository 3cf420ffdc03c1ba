"""The main job against brute force: all activations in memory, one full sort, three networks.

Every column of `winners`, `features` and the predictions of `images` is computed a second time
from the definitions, without zfscale's observation, statistics or windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from collected import collect
from convnet.oracle import receptive_field
from torch import nn

import zfscale
from zfscale import job, models
from zfscale.collection.decode import decode
from zfscale.convnet.network import Network
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.records import image_id
from zfscale.runs.results import Results

BATCH = 8
K = 4
CLASSES = 10
Maps = dict[str, torch.Tensor]

# Where each observed layer's rectified output is to be had from the plain module.
NETWORKS = {
    "zfscale:zfnet-mini": {f"conv{i}": f"conv{i}" for i in range(1, 6)},
    "zfscale:cifar": {f"conv{i}": f"bn{i}" for i in range(1, 5)},
    "torchvision:resnet18": {"conv1": "bn1", "layer1.0.conv1": "layer1.0.bn1"}
    | {"layer2.0.conv2": "layer2.0", "layer4.1.conv2": "layer4.1"},
}


@dataclass(frozen=True)
class Truth:
    """n images in order, their ids, labels (n,), logits (n, classes), and all activations
    (n, C, H, W) by layer.
    """

    ids: list[str]
    labels: np.ndarray
    logits: np.ndarray
    activations: dict[str, np.ndarray]


def _plain(module: nn.Module, layers: dict[str, str]) -> Callable[[torch.Tensor], Maps]:
    """Activations of named modules by hooks of our own: nothing of zfscale has a part in it."""

    def observe(x: torch.Tensor) -> Maps:
        maps: Maps = {}
        hooks = [
            module.get_submodule(path).register_forward_hook(
                lambda _m, _i, out, name=name: maps.__setitem__(name, out.relu().clone())
            )
            for name, path in layers.items()
        ]
        with torch.inference_mode():
            maps["logits"] = module(x)
        for hook in hooks:
            hook.remove()
        return maps

    return observe


def _brute_force(network: Network, layers: dict[str, str], images: str) -> Truth:
    observe = _plain(network.module, layers)
    ids, labels = [], []
    maps: dict[str, list[np.ndarray]] = {}
    for shard in collect(images):
        samples = shard.read()
        ids += [image_id(sample.data) for sample in samples]
        labels += [sample.label for sample in samples]
        pixels = [decode(sample.data, network.preprocessing).pixels for sample in samples]
        for at in range(0, len(pixels), BATCH):
            batch = torch.zeros(BATCH, *pixels[0].shape, dtype=torch.uint8)
            chosen = pixels[at : at + BATCH]
            batch[: len(chosen)] = torch.stack(chosen)
            for name, found in observe(network.normalise(batch)).items():
                maps.setdefault(name, []).append(found[: len(chosen)].numpy())
    whole = {name: np.concatenate(found) for name, found in maps.items()}
    return Truth(ids, np.array(labels), whole.pop("logits"), whole)


@pytest.fixture(scope="module", params=NETWORKS)
def run(request, tmp_path_factory) -> tuple[Results, Network, Truth]:
    """A finished scan of three shards, the network, and all there is to know about it."""
    folder = tmp_path_factory.mktemp("winners")
    parts.write(folder / "images", count=34, seed=0, shard_size=13)
    layers, images = NETWORKS[request.param], str(folder / "images")
    spec = {"run": str(folder / "run"), "model": request.param, "weights": "seed:0"}
    spec |= {"images": images, "batch": BATCH}
    spec |= {"analyses": {"scan": {"layers": list(layers), "top_k": K}}}
    driver.run(resolve.resolve(job.Job.model_validate(spec)), Serial, lambda event: None)
    network = models.load(request.param, "seed:0")
    return zfscale.open(spec["run"]), network, _brute_force(network, layers, images)


def test_winners(run) -> None:
    results, _, truth = run
    found = {
        key: rows.sort_values("rank") for key, rows in results.winners.groupby(["layer", "feature"])
    }
    shapes = {name: maps.shape for name, maps in truth.activations.items()}
    assert set(found) == {(name, f) for name, shape in shapes.items() for f in range(shape[1])}
    for (name, feature), rows in found.items():
        assert rows["rank"].tolist() == list(range(K))
        entries = []
        planes = truth.activations[name][:, feature]
        for id_, label, plane in zip(truth.ids, truth.labels, planes, strict=True):
            y, x = np.unravel_index(plane.argmax(), plane.shape)  # first in reading order
            entries.append((-plane.max(), id_, int(y), int(x), label))
        columns = ("image_id", "y", "x", "label")
        table = zip(-rows["score"], *(rows[column] for column in columns), strict=True)
        assert list(table) == sorted(entries, key=lambda e: e[:4])[:K], (name, feature)


def test_boxes_of_winners(run) -> None:
    results, network, _ = run
    size = network.preprocessing.crop
    hang_over = 0
    for name, winners in results.winners.groupby("layer"):
        layer = network.layer(str(name))
        units = winners[["y", "x", "y0", "x0", "y1", "x1"]].drop_duplicates()
        assert not units[["y", "x"]].duplicated().any()
        for y, x, *box in units.itertuples(index=False):
            seen = receptive_field(network.traced, str(layer.node), y, x)
            for axis in (0, 1):
                start, stop = box[axis], box[axis + 2]
                first, last = seen[axis], seen[axis + 2]
                if layer.field[axis] >= size[axis]:
                    assert (start, stop) == (0, size[axis])
                else:
                    assert stop - start == layer.field[axis]
                    # At a border of the image, or where a filter's padding hides a part of it.
                    assert (max(start, 0), min(stop, size[axis])) == (first, last)
                    hang_over += start < 0 or stop > size[axis]
    assert hang_over


def test_features(run) -> None:
    results, _, truth = run
    for name, maps in truth.activations.items():
        rows = results.features[results.features["layer"] == name].sort_values("feature")
        assert rows["feature"].tolist() == list(range(maps.shape[1]))
        scores = maps.max((2, 3))
        exact = scores.astype(np.float64)
        assert rows["max"].tolist() == scores.max(0).tolist()
        np.testing.assert_allclose(rows["mean"], exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(rows["std"], exact.std(0), rtol=1e-9, atol=1e-12)
        assert rows["fraction_active"].tolist() == (scores > 0).mean(0).tolist()
        assert rows["dead"].tolist() == (scores.max(0) <= 0).tolist()
        _check_classes(rows, exact, truth.labels)


def _check_classes(rows, scores: np.ndarray, labels: np.ndarray) -> None:
    """Morcos et al. (2018): the class of the highest mean against all other images."""
    known = sorted(set(labels.tolist()))
    assert 5 < len(known) <= CLASSES
    means = np.array([scores[labels == label].mean(0) for label in known])
    for at, row in enumerate(rows.itertuples(index=False)):
        order = sorted(range(len(known)), key=lambda place: (-means[place, at], place))
        top = [known[place] for place in order]
        assert row.top_class == top[0]
        assert list(row.top_classes) == top[:5]
        highest, rest = means[order[0], at], scores[labels != top[0], at].mean()
        if highest + rest > 0:
            assert row.selectivity == pytest.approx((highest - rest) / (highest + rest), rel=1e-9)
        else:
            assert np.isnan(row.selectivity)


def test_predictions(run) -> None:
    results, _, truth = run
    rows = results.images.set_index("id")
    exact = truth.logits.astype(np.float64)
    softmax = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    for id_, label, logits, probability in zip(
        truth.ids, truth.labels, truth.logits, softmax, strict=True
    ):
        row = rows.loc[id_]
        assert row["label"] == label
        assert row["predicted"] == logits.argmax()
        assert row["probability"] == pytest.approx(probability.max(), rel=1e-5)
        assert row["true_class_rank"] == (logits > logits[label]).sum()
