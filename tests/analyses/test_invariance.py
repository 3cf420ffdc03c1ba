"""Figure 5 through the driver, against Pillow, numpy and the plain module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from collected import collect
from PIL import Image
from resolved import options
from torch import nn

import zfscale
from zfscale import job, models
from zfscale.analyses.invariance import amounts as _amounts
from zfscale.analyses.invariance import analysis as invariance
from zfscale.collection.decode import decode
from zfscale.convnet.network import Network
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Event, Note, StageDone
from zfscale.engine.worker import Serial
from zfscale.errors import UsageError
from zfscale.models.networks.zfnet_mini import PREPROCESSING
from zfscale.records import Counts, Preprocessing, image_id
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

MINI = {
    "vertical": [-7, 3],
    "horizontal": [5],
    "scale": [1.5],
    "rotation": [90, 180, 25],
}
"""Few amounts of every transform."""
MEAN = tuple(int(mean) for mean in PREPROCESSING.mean)
KEY = ["image_id", "transform", "amount", "layer"]


def carry_out(
    run: Path, images: Path, executor=Serial, notes: list[str] | None = None, **changes
) -> Counts:
    """Scan and sweep; how the images of the sweep ended. Appends what it told to `notes`."""
    given = {"images": "all", **MINI, **changes.pop("options", {})}
    spec = {"run": str(run), "model": "zfscale:zfnet-mini", "images": str(images), "batch": 8}
    spec |= {"analyses": {"scan": {"layers": ["conv1"]}, "invariance": given}, **changes}
    told: list[Event] = []
    driver.run(resolve.resolve(job.Job.model_validate(spec)), executor, told.append)
    if notes is not None:
        notes += [event.text for event in told if isinstance(event, Note)]
    (done,) = [e for e in told if isinstance(e, StageDone) and e.stage == "invariance"]
    return done.counts


def rows_of(run: Path) -> pd.DataFrame:
    return zfscale.open(str(run)).invariance.set_index(KEY).sort_index().drop(columns="run_id")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty held-out images in two shards."""
    folder = tmp_path_factory.mktemp("invariance") / "images"
    parts.write(str(folder), count=20, seed=2, shard_size=13)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "run"
    assert carry_out(place, images) == Counts(20, 20)
    return place


def moved_by_pillow(picture: Image.Image, transform: str, amount: float) -> Image.Image | None:
    """Exact ones alone; the mean colour of this network is a whole number."""
    match transform, amount:
        case "vertical", _:
            matrix = (1, 0, 0, 0, 1, -amount)
        case "horizontal", _:
            matrix = (1, 0, -amount, 0, 1, 0)
        case "rotation", 0 | 90 | 180:
            return picture.rotate(amount)
        case "scale", 1:
            return picture
        case _:
            return None
    how = Image.Transform.AFFINE
    return picture.transform(picture.size, how, matrix, Image.Resampling.NEAREST, fillcolor=MEAN)


def interpolated(image: np.ndarray, transform: str, amount: float) -> np.ndarray:
    """Bilinear, in the normalised image (H, W, 3), with zeros around it."""
    side = len(image)
    centre = (side - 1) / 2
    y, x = np.mgrid[:side, :side] - centre
    if transform == "scale":
        y, x = y / amount, x / amount
    else:
        turn = np.deg2rad(amount)
        y, x = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
    y, x = np.clip(y + centre, -1, side), np.clip(x + centre, -1, side)
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    top, left = top + 1, left + 1
    upper = padded[top, left] * (1 - fx) + padded[top, left + 1] * fx
    lower = padded[top + 1, left] * (1 - fx) + padded[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def through(module: nn.Sequential, image: np.ndarray) -> dict[str, np.ndarray]:
    """Layers of interest and logits of one normalised image (H, W, 3), module by module."""
    values = torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32)
    seen = {}
    with torch.inference_mode():
        for name, layer in module.named_children():
            values = layer(values)
            seen[name] = values[0].double().numpy().ravel()
    return {"conv1": seen["relu1"], "relu7": seen["relu7"], "logits": seen["fc8"]}


def test_against_pillow_and_the_plain_module(run: Path, images: Path) -> None:
    module = models.load("zfscale:zfnet-mini", None).module
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    table = rows_of(run)
    exact = 0
    for sample in collect(images)[0].read(0, 2):
        pixels = decode(sample.data, PREPROCESSING).pixels
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())

        def normalised(given: Image.Image) -> np.ndarray:
            return (np.asarray(given, np.float64) - PREPROCESSING.mean) / PREPROCESSING.std

        original = through(module, normalised(picture))
        mine = table.loc[image_id(sample.data)]
        assert (mine["key"] == sample.key).all()
        assert (mine["label"] == sample.label).all()
        assert (mine["target"] == sample.label).all()
        for (transform, amount), rows in mine.groupby(["transform", "amount"]):
            moved = moved_by_pillow(picture, transform, amount)
            exact += moved is not None
            image = normalised(moved or picture)
            if moved is None:
                image = interpolated(image, transform, amount)
            found = through(module, image)
            exponents = np.exp(found["logits"] - found["logits"].max())
            softmax = exponents / exponents.sum()
            for layer, row in rows.droplevel(["transform", "amount"]).iterrows():
                distance = np.linalg.norm(found[layer] - original[layer])
                assert row["distance"] == pytest.approx(distance, rel=1e-4, abs=1e-9)
                norm = np.linalg.norm(original[layer])
                assert row["normalised"] == pytest.approx(distance / norm, rel=1e-4, abs=1e-9)
                assert row["probability"] == pytest.approx(softmax[sample.label], abs=1e-4)
                assert row["predicted"] == softmax.argmax()
    assert exact == 2 * (3 + 2 + 1 + 3)


def test_every_image_transform_amount_and_layer_once(run: Path) -> None:
    table = rows_of(run)
    assert table.index.is_unique
    amounts = {name: sorted({*given, name == "scale"}) for name, given in MINI.items()}
    wanted = {(name, float(each)) for name, given in amounts.items() for each in given}
    assert len(wanted) == 3 + 2 + 2 + 4
    for _, rows in table.groupby("image_id"):
        found = rows.reset_index()
        pairs = set(zip(found["transform"], found["amount"], strict=True))
        assert pairs == wanted
        assert set(found["layer"]) == {"conv1", "relu7"}
    assert len(table) == 20 * len(wanted) * 2


def test_no_change_gives_exactly_no_distance(run: Path) -> None:
    table = rows_of(run).reset_index()
    neutral = np.where(table["transform"] == "scale", 1.0, 0.0)
    same = table[table["amount"] == neutral]
    assert len(same) == 20 * 4 * 2
    assert (same["distance"] == 0).all()
    assert (same["normalised"] == 0).all()
    assert (table[table["amount"] != neutral]["distance"] > 0).all()
    images = zfscale.open(str(run)).images.set_index("id")
    for image, rows in same.groupby("image_id"):
        assert rows["probability"].nunique() == rows["predicted"].nunique() == 1
        assert rows["predicted"].iloc[0] == images.loc[image, "predicted"]


def test_the_first_layer_moves_away_faster_than_the_last(images: Path, tmp_path: Path) -> None:
    """Section 4.1: small translations have a dramatic effect in the first layer of the model."""
    only = {"vertical": [-4, -3, -2, -1, 1, 2, 3, 4], "scale": None, "rotation": None}
    carry_out(tmp_path / "run", images, options={**only, "horizontal": None})
    table = rows_of(tmp_path / "run").reset_index()
    mean = table.pivot_table(index="amount", columns="layer", values="normalised")
    small = mean[mean.index != 0]
    assert len(small) == 8
    assert (small["conv1"] > 2 * small["relu7"]).all()
    each = table[table["amount"] != 0].set_index(KEY)["normalised"].unstack("layer")
    assert (each["conv1"] > each["relu7"]).mean() > 0.95


def test_a_few_images_give_what_many_give(run: Path, images: Path, tmp_path: Path) -> None:
    """Batches are filled with as many steps as there is room for: eight of one image."""
    whole = rows_of(run)
    keys = zfscale.open(str(run)).images["key"].tolist()
    for number, names in enumerate([keys[8:9], keys[3:6]]):
        place = tmp_path / str(number)
        carry_out(place, images, options={"images": {"keys": names}})
        found = rows_of(place)
        assert set(found["key"]) == set(names)
        pd.testing.assert_frame_equal(found, whole[whole["key"].isin(names)], rtol=1e-5, atol=1e-5)
        assert (found[whole.loc[found.index, "distance"] == 0]["distance"] == 0).all()


class Interrupted(Serial):
    """Ctrl-C in the second task of the sweep; the order of tasks is another one."""

    def execute(self, tasks):
        tasks = list(tasks)
        if tasks[0].analysis != "invariance":
            yield from super().execute(tasks)
            return
        yield self._worker.run(tasks[-1])
        raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "run", images, Interrupted)
    carry_out(tmp_path / "run", images)
    assert digest(open_storage(str(tmp_path / "run"))) == digest(open_storage(str(run)))


def test_tasks_are_small_and_their_batches_full(images: Path, tmp_path: Path, monkeypatch) -> None:
    """With many steps a task has a half or a quarter of a batch, at least one image."""
    monkeypatch.setattr(invariance.Invariance, "task_forwards", 2 * 11)
    given: list[int] = []

    class Noting(Serial):
        def execute(self, tasks):
            tasks = list(tasks)
            given.extend(task.image_count for task in tasks if task.analysis == "invariance")
            return super().execute(tasks)

    carry_out(tmp_path / "run", images, Noting, options={"images": {"sample": 5}})
    assert given == [2, 2, 1]
    assert len(rows_of(tmp_path / "run")) == 5 * 11 * 2


COLOUR = (255, 0, 255)


class Fragile(nn.Module):
    """Divides 0 by 0 where the corner has the colour."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 5, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        away = (x[:, :, 0, 0] + 127.0 - torch.tensor(COLOUR)).abs().sum(1, keepdim=True)
        known = (away > 1).float()
        return self.head(self.conv(x).relu().mean((2, 3)) * (known / known))


def build() -> tuple[nn.Module, Preprocessing]:
    return Fragile(), Preprocessing(resize=40, crop=(32, 32), mean=(127.0,) * 3)


def test_an_image_that_gives_nan_is_taken_back(tmp_path: Path) -> None:
    """Images without labels: one upsets the network once enlarged, one is broken, one a copy."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        parts.render(seed=0, index=number).image.save(folder / f"{number}.png")
    image = Image.new("RGB", (64, 64), (90, 160, 30))
    image.paste(COLOUR, (13, 13, 27, 27))
    image.save(folder / "colour.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    notes: list[str] = []
    counts = carry_out(
        tmp_path / "run", folder, notes=notes, model=f"{__name__}:build", weights="seed:0",
        analyses={"scan": {}, "invariance": {"images": "all"}},
    )  # fmt: skip
    assert counts == Counts(10, 9, 1, non_finite=1)  # what the scan has accepted
    assert notes == [
        "invariance leaves out 1 of 10 images: what the network makes of them is not finite"
    ]
    results = zfscale.open(str(tmp_path / "run"))
    table = results.invariance
    assert table["image_id"].nunique() == 9
    assert not table.duplicated(KEY).any()
    assert "colour.png" not in set(table["key"])
    assert table["label"].isna().all()
    accepted = results.images[results.images["status"] == "ok"]
    predicted = accepted.set_index("id")["predicted"]
    assert (table["target"] == predicted.loc[table["image_id"]].to_numpy()).all()
    same = table[table["distance"] == 0]
    assert (same["predicted"] == same["target"]).all()


def layers_of(module: nn.Module, size: int = 64) -> list[str]:
    network = Network(module, Preprocessing(size, (size, size), (127.0,) * 3), "mine")
    chosen = invariance.Invariance(invariance.Options())._layers(network)
    return [layer.name for layer in chosen]


def test_default_layers() -> None:
    def convolutions(*rest: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *rest)

    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert layers_of(torchvision.models.alexnet(), 224) == ["features.0", "classifier.5"]
    assert layers_of(torchvision.models.resnet18()) == ["conv1", "avgpool"]
    assert layers_of(convolutions(*pooled, nn.Linear(4, 2))) == ["0", "2"]
    # The rectified convolution is all there is before the classifier.
    assert layers_of(convolutions(nn.Flatten(), nn.Linear(4 * 36, 2)), 8) == ["0"]
    # No convolution.
    perceptron = [nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2)]
    assert layers_of(nn.Sequential(*perceptron), 8) == ["2"]
    # No logits, so no classifier: the last convolution.
    assert layers_of(convolutions(nn.Conv2d(4, 4, 3), nn.ReLU())) == ["0", "2"]

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.two(self.one(x)).mean((2, 3))
            return self.fc(x if x.sum() > 0 else -x)

    assert layers_of(Branching()) == ["one", "two"]
    with pytest.raises(UsageError, match="model mine has no hidden layer: name the layers"):
        layers_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 8)


def test_default_amounts_are_those_of_the_figure() -> None:
    def steps(side: int) -> dict[str, list[float]]:
        recipe = Preprocessing(side, (side, side), (127.0,) * 3)
        network = Network(nn.Sequential(nn.Conv2d(3, 4, 3)), recipe)
        found: dict[str, list[float]] = {}
        for name, amount in invariance.Invariance(invariance.Options())._steps(network):
            found.setdefault(name, []).append(amount)
        return found

    figure = steps(224)
    assert figure["vertical"] == list(range(-60, 61, 5))
    assert figure["scale"] == [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    assert figure["rotation"] == list(range(0, 361, 10))
    assert figure.keys() == {"vertical", "scale", "rotation"}
    assert steps(112)["vertical"][:4] == [-30, -28, -25, -23]
    assert steps(32)["vertical"] == list(range(-9, 10))


def test_amounts_in_either_form() -> None:
    for form in ([-1, -0.5, 0, 0.5, 1], {"from": -1, "to": 1, "step": 0.5}):
        assert _amounts.listed(options("invariance", vertical=form).vertical) == (
            -1,
            -0.5,
            0,
            0.5,
            1,
        )
    even = {"from": 1, "to": 2, "step": 0.3}
    assert _amounts.listed(options("invariance", scale=even).scale) == (1, 1.3, 1.6, 1.9)
    assert options("invariance", scale=even).model_dump(mode="json")["scale"] == even
    assert _amounts.with_neutral((3.0, -0.0, 3.0, -2.0), 0) == (-2, 0, 3)
    assert str(_amounts.with_neutral((-0.0,), 0)) == "(0.0,)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": [1, 0]}, r"invariance\.scale: .*above 0"),
        ({"scale": {"from": 0, "to": 1, "step": 1}}, r"invariance\.scale: .*above 0"),
        ({"vertical": "up"}, r"invariance\.vertical: 'up' .*expected auto, \[AMOUNT, \.\.\.\] or"),
        ({"rotation": 3}, r"invariance\.rotation: 3 .*expected \[AMOUNT, \.\.\.\] or \{from"),
        ({"rotation": "auto"}, r"invariance\.rotation: 'auto' .*expected \[AMOUNT"),
        ({"rotation": [1, "x"]}, r"invariance\.rotation\.list\.1: 'x'"),
        ({"rotation": [float("nan")]}, r"invariance\.rotation\.list\.0: nan .*finite"),
        ({"rotation": {"from": 1, "to": 2}}, r"invariance\.rotation\.steps\.step: missing"),
        ({"rotation": {"from": 1, "to": 0, "step": 1}}, "to: 0 is less than from: 1"),
        ({"rotation": {"from": 0, "to": 1, "step": 1e-9}}, "more than 10,000 amounts"),
        ({"rotation": {"from": 0, "to": 1, "step": 0}}, r"steps\.step: 0 .*greater than 0"),
        ({"vertical": None, "scale": [], "rotation": None}, "invariance: .*nothing to do"),
        ({"layers": ["conv1", "conv1"]}, "each once"),
        ({"turn": [1]}, "turn: unknown key; known are images, layers, vertical"),
    ],
)
def test_wrong_options_are_explained(given: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options("invariance", **given)


def test_what_cannot_be_done_is_told_before_the_scan(images: Path, tmp_path: Path) -> None:
    for wrong, message in [
        ({"vertical": [112]}, "vertical: 112 moves the whole image out of sight"),
        ({"horizontal": [-200, 3]}, "horizontal: -200 moves"),
        ({"layers": "conv9"}, "conv9.*no such module"),
    ]:
        with pytest.raises(UsageError, match=message):
            carry_out(tmp_path / "run", images, options=wrong)
    assert not list((tmp_path / "run").glob("segments/*/*"))
