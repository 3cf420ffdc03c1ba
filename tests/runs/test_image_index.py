"""Images by id, by key and by lot, against the table `images` read whole."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from zfscale.analyses.scan.tables import IMAGES
from zfscale.errors import UsageError
from zfscale.runs import image_index as catalogue
from zfscale.runs import tables
from zfscale.storage import open_storage
from zfscale.storage.base import Storage

STATUS = ["ok", "quarantined", "ok", "duplicate", "ok", "ok", "ok"]
KEYS = ["e", "bad", "c", "e", "a", "b", "a"]  # two images may have one key


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Seven rows in two shards, written out of order."""
    storage = open_storage(str(tmp_path_factory.mktemp("catalogue")))
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
    list(tables.write(storage, IMAGES, shuffled, "run"))
    return storage


def numbers(images: list) -> list[int]:
    """The row that each image comes from."""
    return [image.ref.offset // 512 for image in images]


def test_by_id_in_the_order_of_the_collection(storage: Storage) -> None:
    wanted = [f"{number:032x}" for number in (6, 0, 4)]
    found = catalogue.by_id(storage, wanted)
    assert numbers(found) == [0, 4, 6]  # not 3, a copy of 0
    (image,) = catalogue.by_id(storage, wanted[2:])
    assert (image.key, image.label, image.width, image.height) == ("a", 4, 14, 24)
    assert (image.ref.uri, image.ref.offset, image.ref.length) == ("shard-1.tar", 2048, 104)
    assert (image.ref.row_group, image.ref.row) == (None, None)


def test_by_key_all_images_of_that_name(storage: Storage) -> None:
    assert numbers(catalogue.by_key(storage, ["c", "a", "a"])) == [2, 4, 6]


@pytest.mark.parametrize(("keys", "message"), [
    (["c", "zebra"], "the key 'zebra';"),
    (["bad"], "the key 'bad';"),
    (["y", "x", "c"], "the key 'x' and 1 others;"),
])  # fmt: skip
def test_keys_without_an_accepted_image_are_named(storage, keys, message) -> None:
    with pytest.raises(UsageError, match="no accepted image with") as caught:
        catalogue.by_key(storage, keys)
    assert message in str(caught.value)


def test_unknown_keys_are_those_of_no_image_at_all(storage: Storage) -> None:
    assert catalogue.unknown(storage, ["zebra", "bad", "a", "ox"]) == ["ox", "zebra"]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [1, 3, 5, 99])
def test_a_sample_has_the_smallest_hashes(storage: Storage, count: int, seed: int) -> None:
    """Literal: sort all accepted images by the hash of seed and id."""
    accepted = [number for number, status in enumerate(STATUS) if status == "ok"]

    def lot(number: int) -> bytes:
        return hashlib.blake2b(f"{seed} {number:032x}".encode(), digest_size=16).digest()

    expected = sorted(sorted(accepted, key=lot)[:count])
    assert numbers(catalogue.sample(storage, count, seed)) == expected


def test_another_seed_gives_another_sample(storage: Storage) -> None:
    drawn = {tuple(numbers(catalogue.sample(storage, 2, seed))) for seed in range(8)}
    assert len(drawn) > 2
