"""What an analysis of another kind than the built-in ones can be, each in a few lines.

One that needs no scan and reads the images by the index, one of the weights alone, one that needs
gradients. The tables of none go by layer.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from collected import collect, samples_of
from torch import nn

import zfscale
from zfscale import analyses, models
from zfscale.analysis import Analysis, NoOptions, Output
from zfscale.collection.decode import decode
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Summary
from zfscale.engine.worker import Serial
from zfscale.job import Job
from zfscale.records import Column, Counts, ImageList, Table, image_id, to_columns
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

MODEL = "zfscale:zfnet-mini"


def table(name: str, key: str, value: str) -> Table:
    described = (Column(key, "string", "whose it is"), Column(value, "float64", "how much it is"))
    return Table(name, 1, described, (key,), (key, value))


class Published(Analysis[NoOptions]):
    """Publishes the rows of all tasks as they are."""

    def publish(self, view, tasks):
        for task in tasks:
            yield self.tables[0], view.done[task.id]("rows")

    def rows(self, rows) -> Output:
        return Output({"rows": to_columns(self.tables[0].columns, rows)})


class Brightest(Published):
    """The brightest level of each image of the collection."""

    kind = "brightest"
    needs = ("index",)
    scans_dataset = True
    tables = (table("brightest", "key", "level"),)

    def plan(self, view):
        return [self.task(images) for images in view.ranges]

    def run(self, context, task):
        return self.rows(
            (image.key, float(pixels.max()))
            for batch in context.batches()
            for image, pixels in zip(batch.images, batch.pixels, strict=False)
        )


class Norms(Published):
    """The norm of each parameter."""

    kind = "norms"
    tables = (table("norms", "parameter", "norm"),)

    def plan(self, view):
        return [self.task()]

    def run(self, context, task):
        named = context.network.module.named_parameters()
        return self.rows((name, float(values.detach().norm())) for name, values in named)


class Gradients(Published):
    """How much the largest logit of an image changes with its pixels."""

    kind = "gradients"
    needs = ("scan",)
    tables = (table("gradients", "image_id", "norm"),)

    def plan(self, view):
        return [self.task(ImageList(tuple(view.sample(5, 0))))]

    def run(self, context, task):
        rows = []
        for batch in context.batches():
            image = context.network.normalise(batch.pixels).clone().requires_grad_()
            logits = context.network.run(image, gradients=True)
            (gradient,) = torch.autograd.grad(logits.max(1).values.sum(), image)
            norms = gradient.flatten(1).norm(dim=1).tolist()
            rows += [(one.id, norm) for one, norm in zip(batch.images, norms, strict=False)]
        return self.rows(rows)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds above, as those of an installed package."""
    entries = {
        each.kind: EntryPoint(each.kind, f"{__name__}:{each.__name__}", analyses.GROUP)
        for each in (Brightest, Norms, Gradients)
    }
    monkeypatch.setattr(analyses, "_added", lambda: entries)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nineteen images in two shards, and a file that is none."""
    folder = tmp_path_factory.mktemp("contract") / "images"
    parts.write(str(folder), count=19, seed=6, shard_size=12)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def carry_out(run: Path, names: list[str], *places: Path) -> Summary:
    work = {"run": str(run), "model": MODEL, "images": [str(place) for place in places]}
    work |= {"batch": 4, "analyses": {name: {} for name in names}}
    return driver.run(resolve.resolve(Job.model_validate(work)), Serial, lambda event: None)


def test_images_can_be_read_without_a_scan(images: Path, tmp_path: Path) -> None:
    tars = sorted(images.glob("*.tar"))
    summary = carry_out(tmp_path / "run", ["brightest"], *tars, images / "broken.png")
    assert summary.counts == Counts(20, 19, 1)
    results = zfscale.open(str(tmp_path / "run"))
    assert list(results.analyses) == ["index", "brightest"]
    assert results.layers == {}
    assert results["brightest"].counts == summary.counts
    found = results.brightest.set_index("key")["level"].to_dict()
    recipe = models.load(MODEL, None).preprocessing
    assert found == {
        sample.key: decode(sample.data, recipe).pixels.max().item()
        for sample in samples_of(collect(*tars))
    }


def test_a_run_may_have_no_images_at_all(tmp_path: Path) -> None:
    assert carry_out(tmp_path / "run", ["norms"]).counts == Counts()
    results = zfscale.open(str(tmp_path / "run"))
    assert list(results.analyses) == ["norms"]
    module = models.load(MODEL, None).module
    assert results.norms.set_index("parameter")["norm"].to_dict() == {
        name: float(np.float32(torch.linalg.vector_norm(values.detach())))
        for name, values in module.named_parameters()
    }
    before = digest(open_storage(str(tmp_path / "run")))
    carry_out(tmp_path / "run", ["norms"])
    assert digest(open_storage(str(tmp_path / "run"))) == before


def test_gradients_are_those_of_the_plain_module(images: Path, tmp_path: Path) -> None:
    tars = sorted(images.glob("*.tar"))
    carry_out(tmp_path / "run", ["scan", "gradients"], *tars)
    results = zfscale.open(str(tmp_path / "run"))
    network = models.load(MODEL, None)
    for layer in network.module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    found = results.gradients.set_index("image_id")["norm"]
    assert len(found) == 5
    for sample in samples_of(collect(*tars)):
        if (identity := image_id(sample.data)) in found:
            pixels = decode(sample.data, network.preprocessing).pixels.double()
            recipe = network.preprocessing
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
            image = ((pixels * recipe.scale - mean) / std).float()[None].requires_grad_()
            network.module(image).max().backward()
            norm = float(image.grad.norm())
            assert norm > 0
            assert found.pop(identity) == pytest.approx(norm, rel=1e-4)
    assert found.empty
