"""The analysis `correspondence` on rendered creatures, against the definition and through trouble.

The oracle takes the published boxes, covers them in decoded images, asks the plain module for its
features and compares all pairs one by one.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from collected import collect, samples_of
from PIL import Image as Picture
from resolved import options

import zfscale
from zfscale import job, models
from zfscale.analyses.correspondence import analysis as correspondence
from zfscale.analyses.correspondence.analysis import CORRESPONDENCE
from zfscale.analyses.correspondence.occluders import (
    ITSELF,
    OCCLUDERS,
    CoveredBox,
    parts_in_input,
    random_box,
)
from zfscale.boxes import PartBox
from zfscale.collection.decode import decode
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Note
from zfscale.engine.worker import Serial
from zfscale.errors import UsageError
from zfscale.records import Failure, Image, ImageRef, Preprocessing, Receipt, to_columns
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

COUNT, SEED, BATCH, DRAWS = 20, 11, 8, 2
MODULES = {"conv5": "relu5", "relu7": "relu7"}
KEY = ["layer", "part", "random"]
NET = """
from collections import OrderedDict
from torch import nn
from zfscale.records import Preprocessing

class Branching(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x if x.sum() > 0 else 2 * x

def build():
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 4, 5, stride=4), relu1=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(), fc2=nn.Linear(4, 3),
    )
    return Branching(layers), Preprocessing(56, (48, 48), (128.0,) * 3, (64.0,) * 3)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of creatures that the shipped weights were not trained on."""
    folder = tmp_path_factory.mktemp("creatures")
    parts.write(folder, count=COUNT, seed=SEED, shard_size=12)
    return folder


def spec(run: Path, folder: Path, **options: object) -> dict[str, object]:
    given = {"images": "all", "draws": DRAWS} | options
    return {
        "run": str(run),
        "model": "zfscale:zfnet-mini",
        "images": str(folder),
        "batch": BATCH,
        "analyses": {"scan": {"layers": ["conv1"]}, "correspondence": given},
    }


def carry_out(
    work: dict[str, object], executor=Serial, notes: list[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The published tables; what the job had to tell goes to `notes`."""

    def report(event: object) -> None:
        if isinstance(event, Note) and notes is not None:
            notes.append(event.text)

    driver.run(resolve.resolve(job.Job.model_validate(work)), executor, report)
    results = zfscale.open(str(work["run"]))
    return results.correspondence, results.correspondence_images


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run over all images, a batch in each task."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correspondence.Correspondence, "task_forwards", 1)
        carry_out(spec(run, images))
    assert tasks_of(run) == 3
    return run


def tasks_of(run: Path) -> int:
    """Committed tasks of the sweep."""
    return len(manifest.load(open_storage(str(run))).analyses["correspondence"].tasks)


@pytest.fixture(scope="module")
def tables(whole: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    results = zfscale.open(str(whole))
    return results.correspondence, results.correspondence_images


def truth(images: Path, boxes: pd.DataFrame) -> dict[tuple[str, str, int], np.ndarray]:
    """Signs (n, D) by layer, part and draw (-1: the part), of the boxes of a run."""
    network = models.load("zfscale:zfnet-mini", None)
    seen: dict[str, torch.Tensor] = {}
    for name, path in MODULES.items():
        network.module.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out.flatten(1).clone())
        )
    pixels = {
        sample.key: decode(sample.data, network.preprocessing).pixels
        for sample in samples_of(collect(images))
    }
    found: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for row in boxes.itertuples():
        draw = ITSELF if pd.isna(row.draw) else int(row.draw)
        pair = network.normalise(torch.stack([pixels[row.key]] * BATCH))
        pair[1:, :, row.y0 : row.y1, row.x0 : row.x1] = 0
        with torch.inference_mode():
            network.module(pair)
        for name, features in seen.items():
            signs = torch.sign(features[0] - features[1]).numpy()
            found.setdefault((name, row.part, draw), []).append(signs)
    return {key: np.array(vectors) for key, vectors in found.items()}


def pairwise(groups: list[np.ndarray]) -> tuple[int, float, float, float]:
    """Pairs, mean, standard deviation and chance over all pairs within each group."""
    distances, chance = [], []
    for vectors in groups:
        for one, other in itertools.combinations(vectors, 2):
            distances.append((one != other).mean())
            share = [(one == sign).mean() * (other == sign).mean() for sign in (-1, 0, 1)]
            chance.append(1 - sum(share))
    return len(distances), np.mean(distances), np.std(distances), np.mean(chance)


def test_the_table_is_what_the_paper_defines(images: Path, tables) -> None:
    table, boxes = tables
    signs = truth(images, boxes)
    names = sorted(boxes["part"].unique())
    assert names == ["ears", "eyes", "nose", "pattern"]
    rows = table.set_index(KEY)
    assert len(rows) == len(MODULES) * (2 * len(names) + 1)
    for layer in MODULES:
        drawn_of = {part: [signs[layer, part, draw] for draw in range(DRAWS)] for part in names}
        expected = {(part, False): [signs[layer, part, ITSELF]] for part in names}
        expected |= {(part, True): drawn_of[part] for part in names}
        expected |= {("random", True): [group for part in names for group in drawn_of[part]]}
        for (part, random), groups in expected.items():
            row = rows.loc[(layer, part, random)]
            pairs, *measures = pairwise(groups)
            assert row["pairs"] == pairs
            of_part = boxes if part == "random" else boxes[boxes["part"] == part]
            assert row["images"] == of_part["image_id"].nunique()
            found = [row["mean"], row["std"], row["chance"]]
            # The oracle's images lie elsewhere in their batch, so a last bit may differ.
            np.testing.assert_allclose(found, measures, atol=2e-4, err_msg=str((layer, part)))


def test_boxes_are_those_of_the_records(tables) -> None:
    """An image of 112 pixels comes through this preprocessing as it is."""
    _, boxes = tables
    assert not boxes.duplicated(["image_id", "part", "draw"]).any()
    own = boxes[boxes["draw"].isna()].set_index(["key", "part"])
    rendered = {
        (f"{index:06}", box.part): box
        for index in range(COUNT)
        for box in parts.render(SEED, index).boxes
    }
    assert set(own.index) == set(rendered)
    for place, box in rendered.items():
        row = own.loc[place]
        assert (row.x0, row.y0, row.x1, row.y1) == (box.x0, box.y0, box.x1, box.y1)
        assert row["discriminative"] == box.discriminative
        assert row["label"] == int(place[0]) % 10
        assert row["area"] == (box.x1 - box.x0) * (box.y1 - box.y0) / 112**2


def test_random_boxes_have_the_size_of_their_part_and_lie_anywhere(tables) -> None:
    _, boxes = tables
    assert (boxes.groupby(["image_id", "part"])["area"].nunique() == 1).all()
    assert boxes[["y0", "x0"]].min().min() >= 0
    assert boxes[["y1", "x1"]].max().max() <= 112
    sides = (boxes["y1"] - boxes["y0"]).groupby([boxes["image_id"], boxes["part"]])
    assert (sides.nunique() == 1).all()
    random = boxes[boxes["draw"].notna()]
    assert len(random) == DRAWS * boxes["draw"].isna().sum()
    # A box of height h has 112 - h + 1 places: uniform ones are in the middle on average.
    room = 112 - (random["y1"] - random["y0"])
    assert (random["y0"] / room).mean() == pytest.approx(0.5, abs=0.12)
    assert random.groupby(["image_id", "part"])[["y0"]].nunique().gt(1).mean().item() > 0.9


def test_a_draw_depends_on_nothing_else() -> None:
    nose = CoveredBox("nose", False, ITSELF, 3, 4, 13, 24)
    first = random_box(nose, "a", 0, 0, (50, 60))
    assert first == random_box(nose, "a", 0, 0, (50, 60))
    others = [
        random_box(nose, "b", 0, 0, (50, 60)),
        random_box(nose, "a", 1, 0, (50, 60)),
        random_box(nose, "a", 0, 1, (50, 60)),
        random_box(CoveredBox("eyes", False, ITSELF, 3, 4, 13, 24), "a", 0, 0, (50, 60)),
    ]
    assert len({box.box for box in (first, *others)}) == 5
    places = {random_box(nose, "a", at, 0, (12, 21)).box[:2] for at in range(200)}
    assert places == {(y, x) for y in range(3) for x in range(2)}  # all there are, and no other
    assert random_box(nose, "a", 0, 0, (10, 20)).box == (0, 0, 10, 20)


@pytest.mark.parametrize(("limits", "tasks"), [({}, 1), ({"task_bytes": 1 << 14}, 10)])
def test_size_of_tasks_changes_nothing(limits, tasks, images, whole, tmp_path, monkeypatch) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(correspondence.Correspondence, name, value)
    work = spec(tmp_path / "run", images)
    carry_out(work)
    assert tasks_of(tmp_path / "run") == tasks
    assert digest(open_storage(work["run"])) == digest(open_storage(str(whole)))


class Interrupted(Serial):
    """Ctrl-C after one task of the sweep."""

    def execute(self, tasks) -> Iterator[Receipt | Failure]:
        for task in tasks:
            yield self._worker.run(task)
            if task.analysis == "correspondence":
                raise KeyboardInterrupt


class Remembering(Serial):
    """Remembers the analyses of the tasks it was given."""

    given: list[str]

    def execute(self, tasks):
        for task in list(tasks)[::-1]:
            Remembering.given.append(task.analysis)
            yield self._worker.run(task)


def test_an_interrupted_sweep_goes_on(images, whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(correspondence.Correspondence, "task_forwards", 1)
    work = spec(tmp_path / "run", images)
    with pytest.raises(KeyboardInterrupt):
        carry_out(work, Interrupted)
    Remembering.given = []
    carry_out(work, Remembering)
    assert Remembering.given == ["correspondence"] * 2
    assert digest(open_storage(work["run"])) == digest(open_storage(str(whole)))


def test_discriminative_parts_and_named_ones(images, tmp_path) -> None:
    """Each part is then compared among the images where it is discriminative."""
    table, boxes = carry_out(
        spec(tmp_path / "run", images, only="discriminative", layers="conv3", draws=1)
    )
    assert boxes["discriminative"].all()
    discriminative = [
        [box.part for box in parts.render(SEED, at).boxes if box.discriminative]
        for at in range(COUNT)
    ]
    rows = table[~table["random"]].set_index("part")
    assert set(table["layer"]) == {"conv3"}
    assert rows["images"].to_dict() == Counter(part for names in discriminative for part in names)
    assert (rows["pairs"] == rows["images"] * (rows["images"] - 1) // 2).all()
    with pytest.raises(
        UsageError, match=r"only: 'tail': no chosen image has such a part.*ears, eyes"
    ):
        carry_out(spec(tmp_path / "other", images, only=["ears", "tail"]))


def test_a_users_file_gives_what_the_records_give(images, tables, tmp_path) -> None:
    place = tmp_path / "boxes.csv"
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "part", "x0", "y0", "x1", "y1", "discriminative"])
        for index in range(COUNT):
            for box in parts.render(SEED, index).boxes:
                corners = (box.x0, box.y0, box.x1, box.y1)
                writer.writerow([f"{index:06}", box.part, *corners, box.discriminative])
    found = carry_out(spec(tmp_path / "run", images, parts=str(place)))
    keys = (list(CORRESPONDENCE.key), list(OCCLUDERS.key))
    for key, *both in zip(keys, found, tables, strict=True):
        # How many images a task has decides the order of rows.
        mine, theirs = (
            frame.drop(columns="run_id").sort_values(key, ignore_index=True) for frame in both
        )
        pd.testing.assert_frame_equal(mine, theirs)
    with place.open("a") as file:
        file.write("000099,nose,1,2,3,4\n")
    rows = sum(1 for _ in place.open()) - 1
    with pytest.raises(
        UsageError, match=rf"boxes.csv: row {rows}: key: '000099', expected the key"
    ):
        carry_out(spec(tmp_path / "other", images, parts=str(place)))


def test_images_without_parts_have_nothing_to_compare_and_the_job_says_so(tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(3):
        Picture.new("RGB", (40, 40), (at, 0, 0)).save(folder / f"{at}.png")
    told: list[object] = []
    work = job.Job.model_validate(spec(tmp_path / "run", folder, images={"sample": 2}))
    driver.run(resolve.resolve(work), Serial, told.append)
    (note,) = [event.text for event in told if isinstance(event, Note)]
    assert "none of the 2 chosen images" in note
    assert "analyses.correspondence.parts" in note
    assert "correspondence" not in zfscale.open(str(tmp_path / "run")).tables
    with pytest.raises(UsageError) as error:
        carry_out(spec(tmp_path / "other", folder, images={"sample": 2}, only="discriminative"))
    for said in (
        "2 images were chosen by {'sample': 2, 'seed': 0}",
        "0 of them have boxes",
        "`parts`",
    ):
        assert said in str(error.value)


def test_a_part_of_one_image_has_no_pairs_and_bad_boxes_are_told(tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(3):
        rendered = parts.render(3, at)
        rendered.image.save(folder / f"{at}.png")
        listed = [{"part": "all", "x0": 9, "y0": 9, "x1": 50, "y1": 60}]
        listed += [{"part": "tail", "x0": 1, "y0": 1, "x1": 9, "y1": 9 if at == 1 else "?"}]
        (folder / f"{at}.json").write_text(json.dumps({"parts": listed}))
    notes: list[str] = []
    table, boxes = carry_out(spec(tmp_path / "run", folder, draws=1), notes=notes)
    (note,) = notes
    assert note.startswith("parts: 2 boxes or records of images cannot be used, e.g. ")
    assert len(boxes) == 2 * (3 + 1)
    rows = table[table["layer"] == "conv5"].set_index(["part", "random"])
    assert rows["images"].to_dict() == {
        ("all", False): 3, ("all", True): 3, ("tail", False): 1, ("tail", True): 1,
        ("random", True): 3,
    }  # fmt: skip
    assert rows["pairs"].to_dict() == {
        ("all", False): 3, ("all", True): 3, ("tail", False): 0, ("tail", True): 0,
        ("random", True): 3,
    }  # fmt: skip
    alone = rows.loc["tail", ["mean", "std", "chance"]]
    assert alone.isna().all(axis=None)
    assert not rows.loc["all", ["mean", "std", "chance"]].isna().any(axis=None)


def test_a_network_that_cannot_be_traced(images, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "branching", raising=False)
    (tmp_path / "branching.py").write_text(NET)
    changes = {"model": "branching:build", "weights": "seed:0"}
    table, boxes = carry_out(spec(tmp_path / "run", images) | changes)
    assert set(table["layer"]) == {"conv1"}
    assert (table["images"] > 2).all()
    # The short side of 112 pixels becomes 56, and the middle 48 of them are seen.
    own = boxes[boxes["draw"].isna()].set_index(["key", "part"])
    box = next(box for box in parts.render(SEED, 0).boxes if box.part == "nose")
    row = own.loc[("000000", "nose")]
    assert row["y0"] == box.y0 // 2 - 4
    assert row["x1"] == -(-box.x1 // 2) - 4
    named, _ = carry_out(spec(tmp_path / "named", images, layers=["fc2", "mean"]) | changes)
    assert set(named["layer"]) == {"fc2", "mean"}


def test_parts_that_are_cropped_away_are_left_out() -> None:
    image = Image(0, "i", "k", None, ImageRef("u"), 100, 50)
    known = {"i": [PartBox("left", 0, 0, 10, 50), PartBox("middle", 40, 10, 60, 30)]}
    recipe = Preprocessing(50, (50, 50), (0.0,) * 3)
    ((found, boxes),) = parts_in_input([image], known, None, recipe)
    assert found is image
    assert [(box.part, box.box) for box in boxes] == [("middle", (10, 15, 30, 35))]
    assert parts_in_input([image], known, ("left",), recipe) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"draws": 0},
        {"value": [0, 0]},
        {"value": [0, 0, 256]},
        {"value": "grey"},
        {"layers": []},
        {"layers": ["conv1", "conv1"]},
        {"only": []},
        {"only": "ears"},
        {"parts": ""},
        {"size": 3},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=rf"analyses\.correspondence\.{name}"):
        options("correspondence", **wrong)


def test_the_older_spelling_of_discriminative() -> None:
    deciding = options("correspondence", only="deciding")
    assert deciding == options("correspondence", only="discriminative")


def test_an_unknown_layer_stops_the_job_before_any_work(images, tmp_path) -> None:
    with pytest.raises(UsageError, match="layer conv9: zfscale:zfnet-mini has no such module"):
        carry_out(spec(tmp_path / "run", images, layers=["conv9"]))
    assert not (tmp_path / "run" / "segments").exists()


def test_columns_keep_their_types_without_rows() -> None:
    empty = to_columns(OCCLUDERS.columns, [])
    assert {name: values.dtype.kind for name, values in empty.items()} == {
        "image_id": "O", "key": "O", "label": "i", "part": "O", "discriminative": "b", "draw": "i",
        "y0": "i", "x0": "i", "y1": "i", "x1": "i", "area": "f",
    }  # fmt: skip
