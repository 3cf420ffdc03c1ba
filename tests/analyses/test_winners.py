"""The main job against brute force: all activations in memory, one full sort, three networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zfscale
from zfscale import driver, job, models, sources, view
from zfscale.records import image_id
from zfscale.sources.decode import decode
from zfscale.worker import Serial

BATCH = 8
K = 4
Maps = dict[str, torch.Tensor]


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


# Where each observed layer's rectified output is to be had from the plain module.
NETWORKS = {
    "zfscale:zfnet-mini": {f"conv{i}": f"conv{i}" for i in range(1, 6)},
    "zfscale:cifar": {f"conv{i}": f"bn{i}" for i in range(1, 5)},
    "torchvision:resnet18": {"conv1": "bn1", "layer1.0.conv1": "layer1.0.bn1"}
    | {"layer2.0.conv2": "layer2.0", "layer4.1.conv2": "layer4.1"},
}


def _images(folder: Path) -> Iterator[tuple[str, int | None, bytes]]:
    for shard in sources.find([str(folder)]):
        for sample in sources.read(shard, 0, shard.images):
            assert sample.data is not None
            yield image_id(sample.data), sample.label, sample.data


def _brute_force(model: str, folder: Path) -> tuple[dict, list[tuple], np.ndarray]:
    network = models.load(model, "seed:0")
    observe = _plain(network.module, NETWORKS[model])
    images = list(_images(folder))
    pixels = [decode(data, network.preprocessing).pixels for _, _, data in images]
    maps: dict[str, list[np.ndarray]] = {}
    for at in range(0, len(images), BATCH):
        batch = torch.zeros(BATCH, *pixels[0].shape, dtype=torch.uint8)
        chosen = pixels[at : at + BATCH]
        batch[: len(chosen)] = torch.stack(chosen)
        for name, found in observe(network.normalise(batch)).items():
            maps.setdefault(name, []).append(found[: len(chosen)].numpy())
    whole = {name: np.concatenate(parts) for name, parts in maps.items()}
    logits = whole.pop("logits")
    winners = {}
    for name, activations in whole.items():
        for feature in range(activations.shape[1]):
            entries = []
            for (id_, label, _), plane in zip(images, activations[:, feature], strict=True):
                y, x = np.unravel_index(plane.argmax(), plane.shape)  # first in reading order
                entries.append((-plane.max(), id_, int(y), int(x), label))
            winners[name, feature] = sorted(entries, key=lambda e: e[:4])[:K]
    return winners, images, logits


@pytest.mark.parametrize("model", NETWORKS)
def test_winners_equal_brute_force_exactly(model: str, parts_images: Path, tmp_path: Path) -> None:
    layers = list(NETWORKS[model])
    spec = {"run": str(tmp_path / "run"), "model": model, "weights": "seed:0", "batch": BATCH}
    spec |= {"images": str(parts_images), "analyses": {"scan": {"layers": layers, "top_k": K}}}
    driver.run(view.resolve(job.Job.model_validate(spec)), Serial, lambda event: None)
    results = zfscale.open(spec["run"])
    expected, images, logits = _brute_force(model, parts_images)
    found = {
        key: rows.sort_values("rank") for key, rows in results.winners.groupby(["layer", "feature"])
    }
    assert set(found) == set(expected)
    for key, entries in expected.items():
        rows = found[key]
        assert rows["rank"].tolist() == list(range(K))
        names = ("image_id", "y", "x", "label")
        table = zip(-rows["score"], *(rows[name] for name in names), strict=True)
        assert list(table) == [(e[0], *e[1:]) for e in entries], key
    _check_predictions(results, images, logits)


def _check_predictions(results, images, logits) -> None:
    rows = results.images.set_index("id")
    exact = logits.astype(np.float64)
    softmax = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    for at, (id_, label, _) in enumerate(images):
        row = rows.loc[id_]
        assert row["predicted"] == logits[at].argmax()
        assert row["probability"] == pytest.approx(softmax[at].max(), rel=1e-5)
        assert row["rank"] == (logits[at] > logits[at, label]).sum()
