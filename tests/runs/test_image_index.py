"""Images by id, by key and by lot, against the table `images` read whole."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from stored import paths, write_one

from zfscale.analyses.scan.tables import IMAGES
from zfscale.errors import UsageError
from zfscale.records import ImageRange, Shard, Task
from zfscale.runs import segments
from zfscale.runs.image_index import ImageIndex, references
from zfscale.storage import open_storage
from zfscale.storage.base import Storage

STATUS = ["ok", "quarantined", "ok", "duplicate", "ok", "ok", "ok"]
KEYS = ["e", "bad", "c", "e", "a", "b", "a"]  # two images may have one key


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Seven rows in two shards, written out of order."""
    storage = open_storage(str(tmp_path_factory.mktemp("index")))
    count = len(KEYS)
    ids: list[str | None] = [f"{number:032x}" for number in range(count)]
    ids[1], ids[3] = None, ids[0]
    order = [4, 0, 6, 1, 3, 2, 5]
    columns = {column.name: np.ma.masked_all(count, float) for column in IMAGES.columns}
    columns |= {name: np.ma.masked_all(count, np.int64) for name in ("row_group", "row")}
    columns |= {
        "id": np.array(ids, object),
        "key": np.array(KEYS, object),
        "uri": np.array([f"shard-{number // 4}.tar" for number in range(count)], object),
        "offset": np.ma.masked_array(np.arange(count) * 512),
        "length": np.ma.masked_array(np.arange(count) + 100),
        "label": np.ma.masked_array(np.arange(count), [False, True] + [False] * (count - 2)),
        "width": np.ma.masked_array(np.arange(count) + 10),
        "height": np.ma.masked_array(np.arange(count) + 20),
        "status": np.array(STATUS, object),
        "reason": np.array([None] * count, object),
        "probability": np.ma.masked_all(count, np.float32),
        "predicted": np.ma.masked_all(count, np.int64),
        "true_class_rank": np.ma.masked_all(count, np.int64),
    }
    shuffled = {name: values[order] for name, values in columns.items()}
    return ImageIndex(storage, tuple(paths(write_one(storage, IMAGES, shuffled))))


def numbers(images: list) -> list[int]:
    """The row that each image comes from."""
    return [image.ref.offset // 512 for image in images]


def test_by_id_in_the_order_of_the_collection(index: ImageIndex) -> None:
    wanted = [f"{number:032x}" for number in (6, 0, 4)]
    found = index.by_id(wanted)
    assert numbers(found) == [0, 4, 6]  # not 3, a copy of 0
    (image,) = index.by_id(wanted[2:])
    assert (image.key, image.label, image.width, image.height) == ("a", 4, 14, 24)
    assert (image.ref.uri, image.ref.offset, image.ref.length) == ("shard-1.tar", 2048, 104)
    assert (image.ref.row_group, image.ref.row) == (None, None)


def test_by_key_all_images_of_that_name(index: ImageIndex) -> None:
    assert numbers(index.by_key(["c", "a", "a"])) == [2, 4, 6]


@pytest.mark.parametrize(("keys", "message"), [
    (["c", "zebra"], "the key 'zebra';"),
    (["bad"], "the key 'bad';"),
    (["y", "x", "c"], "the key 'x' and 1 others;"),
])  # fmt: skip
def test_keys_without_an_accepted_image_are_named(index: ImageIndex, keys, message) -> None:
    with pytest.raises(UsageError, match="no accepted image with") as caught:
        index.by_key(keys)
    assert message in str(caught.value)


def test_unknown_keys_are_those_of_no_image_at_all(index: ImageIndex) -> None:
    assert index.unknown_keys(["zebra", "bad", "a", "ox"]) == ["ox", "zebra"]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [1, 3, 5, 99])
def test_a_sample_has_the_smallest_hashes(index: ImageIndex, count: int, seed: int) -> None:
    """Literal: sort all accepted images by the hash of seed and id."""
    accepted = [number for number, status in enumerate(STATUS) if status == "ok"]

    def lot(number: int) -> bytes:
        return hashlib.blake2b(f"{seed} {number:032x}".encode(), digest_size=16).digest()

    expected = sorted(sorted(accepted, key=lot)[:count])
    assert numbers(index.sample(count, seed)) == expected


def test_another_seed_gives_another_sample(index: ImageIndex) -> None:
    drawn = {tuple(numbers(index.sample(2, seed))) for seed in range(8)}
    assert len(drawn) > 2


def test_all_accepted_images_in_the_order_of_the_collection(index: ImageIndex) -> None:
    assert numbers(list(index.accepted())) == [0, 2, 4, 5, 6]


def test_without_a_table_there_is_no_image(index: ImageIndex) -> None:
    nothing = ImageIndex(index.storage, ())
    assert list(nothing.accepted()) == nothing.sample(3, 0) == nothing.by_id(["a"]) == []
    assert nothing.unknown_keys(["b", "a"]) == ["a", "b"]
    with pytest.raises(UsageError, match="no accepted image"):
        nothing.by_key(["a"])


@pytest.mark.parametrize("label", [None, 4])
def test_a_range_is_rows_of_the_index_of_its_shard(index: ImageIndex, label: int | None) -> None:
    """With the label of a class folder, which is known once all folders are numbered."""
    storage: Storage = index.storage
    rows = {
        "position": np.arange(9),
        "key": np.array([f"k{n}" for n in range(9)], object),
        "label": np.ma.masked_array(np.arange(9) % 3, np.arange(9) == 5),
    }
    file = segments.write(storage, Task("index"), "index", rows)
    shard = Shard("folder", "here", 9, label=label)
    found = references(storage, ImageRange(shard, file, 4, 7, skip=(5,)))
    # The positions to be skipped are there: whoever reads the range accounts for them.
    assert found["key"].tolist() == ["k4", "k5", "k6"]
    assert found["label"].tolist() == ([1, None, 0] if label is None else [4, 4, 4])
    assert isinstance(found["label"], np.ma.MaskedArray)
    assert references(storage, ImageRange(shard, file, 9, 9))["key"].tolist() == []
