"""Figure 7 through the driver, against the plain module on each occluded image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from collected import collect, samples_of
from resolved import options as options_of
from torch import nn

import zfscale
from zfscale import job, models
from zfscale.analyses.occlusion import analysis as occlusion
from zfscale.analyses.occlusion import tables as _occlusion
from zfscale.collection.decode import decode
from zfscale.convnet.network import Network
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Event, Note, StageBegun, StageDone
from zfscale.engine.worker import Serial
from zfscale.errors import IntegrityError, UsageError
from zfscale.models.networks.zfnet_mini import PREPROCESSING
from zfscale.records import Counts, Preprocessing, image_id
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

SIDE = PREPROCESSING.crop[0]
OPTIONS = {"images": "all", "size": [20, 31], "stride": [23, 17], "features": [3, 11]}


def carry_out(run: Path, images: Path, executor=Serial, **changes) -> list[Event]:
    """Scan and sweep; what the job told."""
    given = OPTIONS | changes.pop("options", {})
    spec = {"run": str(run), "model": "zfscale:zfnet-mini", "images": str(images), "batch": 8}
    spec |= {"analyses": {"scan": {"layers": ["conv5"]}, "occlusion": given}, **changes}
    told: list[Event] = []
    driver.run(resolve.resolve(job.Job.model_validate(spec)), executor, told.append)
    return told


def counts_of(told: list[Event]) -> Counts:
    (done,) = [e for e in told if isinstance(e, StageDone) and e.stage == "occlusion"]
    return done.counts


def tasks_of(told: list[Event]) -> int:
    return sum(e.tasks for e in told if isinstance(e, StageBegun) and e.stage == "occlusion")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven held-out images in two shards; the last one of the first comes again."""
    folder = tmp_path_factory.mktemp("occlusion") / "images"
    parts.write(str(folder), count=11, seed=2, shard_size=7)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "run"
    assert counts_of(carry_out(place, images)) == Counts(11, 11)
    return place


def starts(size: int, stride: int) -> list[int]:
    """Until the last row or column is covered."""
    found = [0]
    while found[-1] + size < SIDE:
        found.append(found[-1] + stride)
    return found


def samples(images: Path) -> list[tuple[str, str, int | None, torch.Tensor]]:
    """Id, key, label and normalised input (1, 3, H, W) of all images."""
    found = []
    for sample in samples_of(collect(images)):
        pixels = decode(sample.data, PREPROCESSING).pixels.double()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
        image = ((pixels - mean) / std).float()[None]
        found.append((image_id(sample.data), sample.key, sample.label, image))
    return found


def through(module: nn.Sequential, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Maps of layer 5 after its rectification (C, h, w), and the logits, module by module."""
    maps = None
    with torch.inference_mode():
        for name, layer in module.named_children():
            image = layer(image)
            if name == "relu5":
                maps = image[0].double().numpy().copy()
    return maps, image[0].double().numpy()


def test_against_the_plain_module(run: Path, images: Path) -> None:
    module = models.load("zfscale:zfnet-mini", None).module
    results = zfscale.open(str(run))
    positions, features = results.occlusion, results.occlusion_features
    known = results.occlusion_images.set_index("image_id")
    assert len(known) == 11
    for id_, key, label, image in samples(images)[::5]:
        maps, logits = through(module, image.clone())
        feature, y, x = np.unravel_index(maps.argmax(), maps.shape)
        row = known.loc[id_]
        assert (row["key"], row["label"], row["target"]) == (key, label, label)
        assert (row["feature"], row["y"], row["x"]) == (feature, y, x)
        assert (row["height"], row["width"], row["stride_y"], row["stride_x"]) == (20, 31, 23, 17)
        assert row["predicted"] == logits.argmax()
        assert row["total"] == pytest.approx(maps[feature].sum(), rel=1e-5)
        assert (row["layer"], row["method"]) == ("conv5", "incremental")
        mine = positions[positions["image_id"] == id_].set_index(["y", "x"])
        more = features[features["image_id"] == id_].set_index(["feature", "y", "x"])
        assert (row["rows"], row["columns"]) == (len(starts(20, 23)), len(starts(31, 17)))
        assert len(mine) == row["rows"] * row["columns"]
        assert len(more) == 2 * len(mine)
        for top in starts(20, 23):
            for left in starts(31, 17):
                hidden = image.clone()
                hidden[:, :, top : top + 20, left : left + 31] = 0
                occluded, scores = through(module, hidden)
                chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                found = mine.loc[(top, left)]
                assert found["probability"] == pytest.approx(chances[label], abs=1e-5)
                assert found["predicted"] == scores.argmax()
                totals = occluded.sum((1, 2))
                assert found["activation"] == pytest.approx(
                    totals[feature], abs=1e-5 * maps[feature].sum()
                )
                for other in (3, 11):
                    further = more.loc[(other, top, left)]
                    scale = 1e-5 * maps.sum((1, 2)).max()
                    assert further["activation"] == pytest.approx(totals[other], abs=scale)
                    assert further["unoccluded"] == pytest.approx(maps[other].sum(), abs=scale)


def test_the_receptive_field_is_that_of_the_winners(run: Path) -> None:
    results = zfscale.open(str(run))
    winners = results.winners.set_index(["image_id", "feature"])
    checked = 0
    for row in results.occlusion_images.itertuples():
        if (row.image_id, row.feature) in winners.index:
            won = winners.loc[(row.image_id, row.feature)]
            for name in ("y", "x", "y0", "x0", "y1", "x1"):
                assert won[name] == getattr(row, name)
            checked += 1
    assert checked > 3


def test_tasks_of_some_images_or_some_rows_give_the_same(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position ranges of one image meet in the tables; each image is described once."""
    monkeypatch.setattr(occlusion.Occlusion, "task_work", 1e7)
    told = carry_out(tmp_path / "run", images)
    assert tasks_of(told) == 11 * len(starts(20, 23))
    whole, split = zfscale.open(str(run)), zfscale.open(str(tmp_path / "run"))
    keys = {
        "occlusion": ["image_id", "y", "x"],
        "occlusion_images": ["image_id"],
        "occlusion_features": ["image_id", "feature", "y", "x"],
    }
    for table, key in keys.items():
        one, other = (
            getattr(r, table).drop(columns="run_id").sort_values(key, ignore_index=True)
            for r in (whole, split)
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-5, atol=1e-5)


def test_copies_count_once(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.tar").write_bytes(min(images.glob("*.tar")).read_bytes())
    assert counts_of(carry_out(tmp_path / "run", folder)) == Counts(7, 7)
    results = zfscale.open(str(tmp_path / "run"))
    assert len(results.occlusion_images) == 7
    assert not results.occlusion.duplicated(["image_id", "y", "x"]).any()


def test_an_interrupted_sweep_goes_on(images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(occlusion.Occlusion, "task_work", 1e9)

    class Dying(Serial):
        def execute(self, tasks):
            tasks = list(tasks)
            for number, receipt in enumerate(super().execute(tasks)):
                if tasks[0].analysis == "occlusion" and number == 3:
                    raise KeyboardInterrupt
                yield receipt

    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "run", images, Dying)
    told = carry_out(tmp_path / "run", images)
    whole = tasks_of(carry_out(tmp_path / "other", images))
    assert tasks_of(told) == whole - 3
    one, other = (digest(open_storage(str(tmp_path / name))) for name in ("run", "other"))
    assert one == other


UNTRACEABLE = """
import torch
from collected import collect, samples_of
from resolved import options as options_of
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 5, stride=3)
        self.conv2 = nn.Conv2d(5, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv2(torch.relu(self.conv1(x)))
        {statement}
        return self.fc(torch.relu(x).mean((2, 3)))

def net():
    return Net()
"""


def test_the_strongest_unit_is_projected_as_that_of_a_winner(images: Path, tmp_path: Path) -> None:
    """Both come down by the deconvnet: one while the image is at hand, one from stored records."""
    given = OPTIONS | {"stride": 0.9, "features": []}
    stages = {"scan": {"layers": ["conv5"]}, "deconvolve": {}, "occlusion": given}
    carry_out(tmp_path / "run", images, analyses=stages)
    results = zfscale.open(str(tmp_path / "run"))
    winners = results.winners.set_index(["image_id", "feature"])
    rows = results.occlusion_projections
    assert len(rows) == 11
    checked = 0
    for row in rows.itertuples():
        if (row.image_id, row.feature) in winners.index:
            won = winners.loc[(row.image_id, row.feature)]
            whole = results.projections("conv5")[row.feature, won["rank"]]
            inside = whole[max(-won.y0, 0) :, max(-won.x0, 0) :][: row.height, : row.width]
            assert (row.y0, row.x0) == (max(won.y0, 0), max(won.x0, 0))
            assert row.y0 + row.height == min(won.y1, SIDE)
            assert row.x0 + row.width == min(won.x1, SIDE)
            found = row.projection.reshape(row.height, row.width, 3)
            np.testing.assert_allclose(found, inside, rtol=0, atol=1e-6 * np.abs(inside).max())
            assert np.abs(inside).max() > 0
            checked += 1
    assert checked > 3


@pytest.mark.parametrize(
    ("statement", "why"), [("if x.sum() > 1e9: x = x * 2", "traced"), ("x = x * 2", "mul")]
)
def test_the_whole_network_is_run_where_it_must_be(
    images: Path, tmp_path: Path, monkeypatch, statement: str, why: str
) -> None:
    name = f"own_{why}"
    (tmp_path / f"{name}.py").write_text(UNTRACEABLE.replace("{statement}", statement))
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"options": {"features": [], "images": {"sample": 2}, "value": [10, 250, 90]}}
    changes = {"model": f"{name}:net", "weights": "seed:3"}
    analysed = {"scan": {"layers": ["conv2"]}, "occlusion": OPTIONS | given["options"]}
    told = carry_out(tmp_path / "run", images, **changes, analyses=analysed)
    (note,) = [e.text for e in told if isinstance(e, Note)]
    assert "whole network" in note
    assert why in note
    results = zfscale.open(str(tmp_path / "run"))
    (method,) = set(results.occlusion_images["method"])
    assert method == "full"
    network = models.load(changes["model"], "seed:3", "cpu")
    row = results.occlusion_images.iloc[0]
    pixels = torch.from_numpy(results.image(row["image_id"])).permute(2, 0, 1)[None]
    colour = torch.tensor([10, 250, 90], dtype=torch.uint8).view(1, 3, 1, 1)
    mine = results.occlusion[results.occlusion["image_id"] == row["image_id"]]
    for found in mine.iloc[::9].itertuples():
        hidden = pixels.clone()
        hidden[:, :, found.y : found.y + 20, found.x : found.x + 31] = colour
        logits = network.forward(hidden)[0].softmax(0)
        assert found.probability == pytest.approx(float(logits[row["target"]]), abs=1e-5)


def test_without_classes_nothing_above_the_layer_is_there(images: Path, tmp_path: Path) -> None:
    options = {"classify": False, "features": [], "images": {"sample": 3, "seed": 1}}
    carry_out(tmp_path / "run", images, options=options)
    results = zfscale.open(str(tmp_path / "run"))
    assert len(results.occlusion_images) == 3
    assert results.occlusion["probability"].isna().all()
    assert results.occlusion["activation"].notna().all()
    assert "occlusion_features" not in results.tables


@pytest.mark.parametrize("chosen", ["all", {"sample": 11}])
def test_an_image_that_is_gone_stops_the_sweep(images: Path, tmp_path: Path, chosen) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for tar in images.glob("*.tar"):
        (folder / tar.name).write_bytes(tar.read_bytes())
    carry_out(tmp_path / "run", folder, analyses={"scan": {"layers": ["conv5"]}})
    (folder / "parts-00001.tar").unlink()
    second = {"run": str(tmp_path / "run"), "analyses": {"occlusion": {"images": chosen}}}
    with pytest.raises(IntegrityError, match=r"00000\d in .* can no longer be read as scanned"):
        driver.run(resolve.resolve(job.Job.model_validate(second)), Serial, lambda event: None)


def test_a_refused_job_takes_nothing_away_from_a_complete_run(images: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    carry_out(tmp_path / "run", images, analyses={"scan": {"layers": ["conv5"]}})
    for given, word in ({"layer": "conv9"}, "conv9"), ({"images": {"keys": ["x"]}}, "'x'"):
        second = job.Job.model_validate({"run": run, "analyses": {"occlusion": given}})
        with pytest.raises(UsageError, match=word):
            driver.run(resolve.resolve(second), Serial, lambda event: None)
        assert len(zfscale.open(run).images) == 11


def test_all_images_are_those_that_the_scan_has_accepted(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    first, second = sorted(images.glob("*.tar"))
    (folder / "a.tar").write_bytes(first.read_bytes())
    carry_out(tmp_path / "run", folder, analyses={"scan": {"layers": ["conv5"]}})
    (folder / "b.tar").write_bytes(second.read_bytes())  # too late
    sweep = {"occlusion": {"images": "all", "size": 0.6, "stride": 0.5}}
    spec = {"run": str(tmp_path / "run"), "analyses": sweep}
    driver.run(resolve.resolve(job.Job.model_validate(spec)), Serial, lambda event: None)
    results = zfscale.open(str(tmp_path / "run"))
    assert sorted(results.occlusion_images["image_id"]) == sorted(results.images["id"])


def test_tasks_of_a_small_network_are_small(images: Path, tmp_path: Path) -> None:
    """A position costs it a millisecond or two, whatever its multiply-adds say."""
    told = carry_out(tmp_path / "run", images, options={"stride": 0.04, "features": []})
    assert tasks_of(told) == 2  # of six images, some 3,000 positions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 112}, "112 x 112 pixels covers the whole input of 112 x 112"),
        ({"size": [120, 300]}, "120 x 300 pixels"),
        ({"layer": "conv9"}, "conv9"),
        ({"features": [64]}, "conv5 has no feature 64; it has 0 to 63"),
        ({"images": {"keys": ["nobody"]}}, "'nobody'"),
        ({"images": {"winners": ["conv1"]}}, "no layer 'conv1'; it has conv5"),
    ],
)
def test_mistakes_are_named(images: Path, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        carry_out(tmp_path / "run", images, options=options)


@pytest.mark.parametrize(
    "given",
    [
        {"features": [3, 3]},
        {"size": 0},
        {"size": 1.5},
        {"size": 1.0},
        {"size": True},
        {"images": {"keys": [12]}},
        {"images": {"some": 12}},
        {"stride": -1},
        {"value": "grey"},
        {"value": [1, 2]},
    ],
)
def test_options_out_of_range_are_refused(given) -> None:
    key = next(iter(given))
    with pytest.raises(UsageError, match=rf"analyses\.occlusion\.{key}") as caught:
        options_of("occlusion", **given)
    assert "sample" not in str(caught.value) or given["images"] == {"some": 12}


def test_a_bar_across_the_whole_image_may_move_down(images: Path, tmp_path: Path) -> None:
    given = {"size": [32, SIDE], "stride": [40, SIDE], "images": {"sample": 1}, "features": []}
    carry_out(tmp_path / "run", images, options=given)
    row = zfscale.open(str(tmp_path / "run")).occlusion_images.iloc[0]
    assert (row["rows"], row["columns"]) == (len(starts(32, 40)), 1)


def test_an_image_that_fails_at_some_positions_is_left_out_whole() -> None:
    first, second = (np.array(ids, object) for ids in (["a", "b"], ["a"]))
    parts_ = [(0, {"image_id": first}), (5, {"image_id": second})]
    lost = _occlusion.incomplete(iter(parts_))
    assert lost == {"b"}
    rows = {"image_id": first, "y": np.array([3, 4])}
    assert _occlusion.drop_images(rows, lost)["y"].tolist() == [3]
    assert _occlusion.incomplete(iter(parts_[:1])) == set()


def test_work_is_that_of_every_product_also_over_tokens() -> None:
    tokens = nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2),
        nn.Flatten(2),
        nn.Linear(16, 5),
        nn.Flatten(),
        nn.Linear(20, 6),
    )
    network = Network(tokens, Preprocessing(None, (8, 8), (0.0, 0.0, 0.0)))
    wanted = 16 * 4 * 3 * 4 + 4 * 16 * 5 + 20 * 6
    assert occlusion._multiply_adds(network) == wanted
