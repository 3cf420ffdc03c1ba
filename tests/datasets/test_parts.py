"""The data set `parts`: reproducible, balanced, and its boxes tell the truth."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zfscale.datasets import creatures, parts
from zfscale.errors import UsageError


def pixels(rendered: parts.Rendered) -> np.ndarray:
    return np.asarray(rendered.image).astype(int)


def inside(boxes: list[parts.DrawnPart]) -> np.ndarray:
    mask = np.zeros((parts.SIZE, parts.SIZE), dtype=bool)
    for box in boxes:
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return mask


def test_every_class_has_one_deciding_part_in_a_variant_of_its_own():
    own = {(part, variant) for _, part, variant in parts.CLASSES}
    assert len(own) == len(parts.CLASSES) == 10
    shared = {(part, variant) for part, variants in parts.SHARED.items() for variant in variants}
    assert not own & shared
    every = {(part, name) for part, kinds in creatures.VARIANTS.items() for name in kinds}
    assert own | shared == every
    assert {part for part, _ in own} == set(creatures.PARTS)


def test_an_image_is_a_function_of_seed_and_index():
    first, again = parts.render(3, 14), parts.render(3, 14)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.label, first.boxes, first.pose) == (again.label, again.boxes, again.pose)
    for other in (parts.render(4, 14), parts.render(3, 24)):
        assert other.image.tobytes() != first.image.tobytes()


def test_the_data_set_stays_what_the_shipped_weights_were_trained_on():
    rendered = parts.render(0, 3)
    assert parts.CLASSES[rendered.label][0] == "cyclops"
    assert (rendered.image.size, rendered.image.mode) == ((112, 112), "RGB")
    assert rendered.pose == parts.Pose(
        x=56.28, y=50.59, scale=22.37, rotation=18.59, head_tilt=-1.38, turn=0.789
    )
    found = [(box.part, box.variant, box.discriminative) for box in rendered.boxes]
    assert found == [
        ("ears", "floppy", False),
        ("eyes", "one", True),
        ("nose", "button", False),
        ("pattern", "bib", False),
    ]
    corners = [(box.x0, box.y0, box.x1, box.y1) for box in rendered.boxes]
    # Another version of Pillow may fill a polygon's edge otherwise.
    expected = [(32, 19, 88, 52), (49, 35, 73, 60), (53, 56, 61, 63), (33, 70, 58, 96)]
    assert np.abs(np.array(corners) - np.array(expected)).max() <= 1


@pytest.mark.parametrize("index", range(20))
def test_parts_lie_inside_the_image_and_are_large_enough_to_occlude(index: int):
    boxes = parts.render(1, index).boxes
    assert {box.part for box in boxes} == set(creatures.PARTS)
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= parts.SIZE
        assert 0 <= box.y0 < box.y1 <= parts.SIZE
        if box.discriminative:
            assert min(box.x1 - box.x0, box.y1 - box.y0) >= 8
            assert (box.x1 - box.x0) * (box.y1 - box.y0) >= 120


@pytest.mark.parametrize("part", creatures.PARTS)
@pytest.mark.parametrize("index", range(10))
def test_a_part_changes_its_box_and_nothing_else(index: int, part: str):
    whole = parts.render(2, index)
    without = parts.render(2, index, without=(part,))
    changed = (pixels(whole) != pixels(without)).any(axis=2)
    (box,) = [box for box in whole.boxes if box.part == part]
    assert part not in {box.part for box in without.boxes}
    assert not (changed & ~inside([box])).any()
    ys, xs = np.nonzero(changed)
    # Tight: the box is at most two pixels larger than what changes visibly.
    assert xs.min() - box.x0 <= 2
    assert ys.min() - box.y0 <= 2
    assert box.x1 - 1 - xs.max() <= 2
    assert box.y1 - 1 - ys.max() <= 2


@pytest.mark.parametrize("index", range(6))
def test_classes_differ_by_their_deciding_parts_only(index: int):
    views = [parts.render(5, index, label=label) for label in range(len(parts.CLASSES))]
    for a in views:
        for b in views:
            deciding = {parts.CLASSES[view.label][1] for view in (a, b)}
            area = inside([box for view in (a, b) for box in view.boxes if box.part in deciding])
            changed = (pixels(a) != pixels(b)).any(axis=2)
            assert not (changed & ~area).any()
            assert changed.any() == (a.label != b.label)


def test_what_does_not_decide_is_independent_of_the_class():
    """Without its deciding part an image is the same for all classes of that part."""
    for part in creatures.PARTS:
        labels = [n for n, (_, deciding, _) in enumerate(parts.CLASSES) if deciding == part]
        views = {parts.render(6, 0, label, without=(part,)).image.tobytes() for label in labels}
        assert len(views) == 1


def test_written_shards_hold_every_image_once_and_classes_in_balance(tmp_path: Path):
    shards = parts.write(tmp_path, 50, seed=9, shard_size=20)
    assert [shard.name for shard in shards] == [f"parts-{n:05}.tar" for n in range(3)]
    names = json.loads((tmp_path / "classes.json").read_text())
    keys, labels = [], Counter()
    for shard in shards:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        for key, sample in samples.items():
            expected = parts.render(9, int(key))
            about = json.loads(sample["json"])
            label = int(sample["cls"])
            assert label == about["class"] == expected.label
            assert about["class_name"] == names[label]
            assert [parts.DrawnPart(**box) for box in about["parts"]] == list(expected.boxes)
            assert parts.Pose(**about["pose"]) == expected.pose
            decoded = np.asarray(Image.open(io.BytesIO(sample["jpg"]))).astype(int)
            assert np.abs(decoded - pixels(expected)).mean() < 4
            keys.append(key)
            labels[label] += 1
    assert keys == [f"{n:06}" for n in range(50)]
    assert set(labels.values()) == {5}


def _write(arguments: tuple[Path, int, int]) -> None:
    out, start, count = arguments
    parts.write(out, count, seed=4, shard_size=5, start=start)


def test_processes_and_order_make_no_difference(tmp_path: Path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    parts.write(alone, 15, seed=4, shard_size=5)
    work = [(together, 10, 5), (together, 0, 5), (together, 5, 5)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_write, work)
    assert digests(together) == digests(alone)
    assert len(digests(alone)) == 4


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_range_that_cuts_shards_keeps_the_images(tmp_path: Path):
    (shard,) = parts.write(tmp_path, 2, seed=4, shard_size=5, start=6, split="some")
    assert shard.name == "some-00001.tar"
    with tarfile.open(shard) as tar:
        keys = {name.partition(".")[0] for name in tar.getnames()}
    assert keys == {"000006", "000007"}


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 1, "start": -1}, {"count": 1, "shard_size": 0},
              {"count": 1, "seed": -1}]
)  # fmt: skip
def test_senseless_counts_are_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(UsageError, match="expected at least one image"):
        parts.write(tmp_path, **wrong)


def test_nothing_is_overwritten(tmp_path: Path):
    parts.write(tmp_path, 1)
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=r"parts-00000\.tar is already there"):
        parts.write(tmp_path, 3, seed=1)
    assert digests(tmp_path) == before
