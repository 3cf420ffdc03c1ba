"""Parquet files: columns, labels, nulls, damage, and reading one row again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import collect, read_all, samples_of, select

from zfscale import collection as sources
from zfscale.collection.decode import Decoded, decode_ahead
from zfscale.records import Preprocessing, Reason

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> None:
    """Row groups of three rows; with `names`, described as Hugging Face does."""
    table = pa.table(columns)
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"_type": "ClassLabel", "names": names},
            "thumbnail": {"_type": "Value"},
        }
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, row_group_size=3)


def images(count: int) -> pa.Array:
    return pa.array(
        [{"bytes": f"data{row}".encode(), "path": f"{row}.png"} for row in range(count)], IMAGE
    )


def test_hugging_face_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    thumbnails = pa.array([b"small"] * 8)
    write(path, {"thumbnail": thumbnails, "image": images(8), "label": range(8)}, ["a", "b"])
    samples = read_all(path)
    assert [sample.key for sample in samples] == [f"{row}.png" for row in range(8)]
    assert [sample.label for sample in samples] == list(range(8))
    assert [(s.ref.row_group, s.ref.row) for s in samples[2:5]] == [(0, 2), (1, 0), (1, 1)]
    for row, sample in enumerate(samples):
        assert sample.data == f"data{row}".encode() == sources.fetch(sample.ref)
    assert sources.class_names(sources.find([str(path)])) == ["a", "b"]


def test_ranges_and_skips(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": images(8), "label": range(8)})
    (shard,) = collect(tmp_path)
    whole = read_all(tmp_path)
    for cut in range(9):
        assert [*shard.read(0, cut), *shard.read(cut)] == whole
    some = select(shard.rows, [2, 5, 6])
    assert list(sources.read(shard.shard, some)) == [whole[2], whole[5], whole[6]]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["image", "jpg", "anything"])
def test_plain_binary_column(kind: pa.DataType, name: str, tmp_path: Path) -> None:
    columns = {"id": [5, 6], name: pa.array([b"x", b"y"], kind)}
    write(tmp_path / "a.parquet", columns)
    samples = read_all(tmp_path)
    assert [sample.data for sample in samples] == [b"x", b"y"]
    assert [sample.key for sample in samples] == ["a.parquet#0", "a.parquet#1"]
    assert [sample.label for sample in samples] == [None, None]
    assert sources.class_names(sources.find([str(tmp_path)])) is None


def test_nulls_and_labels_that_are_none(tmp_path: Path) -> None:
    rows = [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": ""}]
    rows += [{"bytes": b"x", "path": None}] * 2
    labels = pa.array([1.0, -1.0, None, 2.5, 3.0])
    write(tmp_path / "a.parquet", {"image": pa.array(rows, IMAGE), "label": labels})
    assert [sample.label for sample in read_all(tmp_path)] == [None] * 5  # no whole numbers
    whole = pa.array([1, 0, None, 2**64 - 1, 10**18 - 1], pa.uint64())
    write(tmp_path / "a.parquet", {"image": pa.array(rows, IMAGE), "label": whole})
    samples = read_all(tmp_path)
    reasons = [Reason.NO_IMAGE, Reason.NO_IMAGE, Reason.EMPTY, None, None]
    assert [sample.reason for sample in samples] == reasons
    assert [sample.label for sample in samples] == [1, 0, None, None, 10**18 - 1]
    negative = pa.array([-1, 5, None, -(2**63), 7])
    write(tmp_path / "a.parquet", {"image": pa.array(rows, IMAGE), "label": negative})
    assert [sample.label for sample in read_all(tmp_path)] == [None, 5, None, None, 7]


@pytest.mark.parametrize("columns", [{"image": [1, 2], "label": [1, 2]}, {"text": ["a", "b"]}])
def test_no_image_column(columns: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", columns)
    assert [sample.reason for sample in read_all(tmp_path)] == [Reason.NO_IMAGE] * 2


@pytest.mark.parametrize("data", [b"", b"PAR1", b"<html>" * 100])
def test_not_parquet(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    assert [sample.reason for sample in read_all(tmp_path)] == [Reason.UNREADABLE]
    assert sources.class_names(sources.find([str(tmp_path)])) is None


def test_damaged_column_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"picture": [b"x", b"y"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"picture", b"\xff" * 7))
    assert [sample.reason for sample in read_all(path)] == [Reason.UNREADABLE]


def test_damaged_row_group_costs_only_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, {"image": images(9), "label": range(9)})
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    reasons = [sample.reason for sample in read_all(path)]
    assert reasons == [None] * 3 + [Reason.UNREADABLE] * 3 + [None] * 3


def test_damaged_path_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, {"image": images(3)})
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"1.png", b"\xff.png"))
    samples = read_all(path)
    assert [sample.key for sample in samples] == ["0.png", "\\xff.png", "2.png"]
    assert [sample.data for sample in samples] == [b"data0", b"data1", b"data2"]


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_damage_anywhere_is_accounted_for(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images(9)}), path, 3, compression=compression)
    good = path.read_bytes()
    length = int.from_bytes(good[-8:-4], "little")  # of the footer, which holds the row count
    rng = np.random.default_rng(0)
    damaged = 0
    for attempt in range(200):
        data = bytearray(good)
        for place in rng.integers(4, len(good) - length - 8, 1 + attempt % 5):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        samples = read_all(path)
        assert len(samples) == 9
        damaged += any(sample.reason is Reason.UNREADABLE for sample in samples)
    assert damaged > 20


def test_file_replaced_by_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, {"image": images(8)})
    (shard,) = collect(path)
    write(path, {"image": images(5)})
    reasons = [sample.reason for sample in shard.read()]
    assert reasons == [None] * 5 + [Reason.UNREADABLE] * 3


def test_cifar(shared_data: Path, preprocessing: Preprocessing) -> None:
    """All 10,000 test images of CIFAR-10 decode."""
    shards = collect(shared_data / "cifar10" / "test-*.parquet")
    names = sources.class_names([each.shard for each in shards])
    assert names is not None
    assert names[:2] == ["airplane", "automobile"]
    stream = iter(samples_of(shards))
    count = 0
    for sample, outcome in decode_ahead(stream, preprocessing, threads=2, ahead=16):
        assert isinstance(outcome, Decoded)
        assert sample.label is not None
        assert names[sample.label] in sample.key
        count += 1
    assert count == 10_000
