"""Tables: typed, sorted, described, and readable by pandas, DuckDB and pyarrow alone."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from zfscale.errors import IntegrityError
from zfscale.records import Column, Table
from zfscale.runs import tables

IMAGES = Table(
    "images", 1, (Column("id", "int64", "identity"), Column("n", "int64", "any")), ("id",), ("id",)
)


def test_round_trip_is_sorted_and_by_layer(storage, winners):
    table, rows = winners
    given = rows(20)
    files = tables.write(storage, table, given, "r1")
    assert [f.path for f in files] == [
        "winners/layer=features.0/part-00000.parquet",
        "winners/layer=fc%2F1/part-00000.parquet",
    ]
    found = tables.read(storage, "winners")
    assert found["layer"].tolist() == ["fc/1"] * 10 + ["features.0"] * 10
    assert found["feature"].tolist() == [*range(0, 20, 2), *range(1, 20, 2)]
    order = [np.flatnonzero(given["feature"] == f)[0] for f in found["feature"]]
    for name in ("rank", "score", "dead", "key"):
        assert found[name].tolist() == given[name][order].tolist()
        assert found[name].dtype == given[name].dtype
    assert found["label"].tolist() == given["label"][order].tolist()
    assert [c.tolist() for c in found["classes"]] == [c.tolist() for c in given["classes"][order]]
    assert set(found["run_id"]) == {"r1"}


def test_selection(storage, winners):
    table, rows = winners
    tables.write(storage, table, rows(20), "r1")
    found = tables.read(storage, "winners", ["feature"], {"layer": "fc/1", "feature": (4, 9)})
    assert list(found) == ["feature"]
    assert found["feature"].tolist() == [4, 6, 8]
    found = tables.read(storage, "winners", ["feature"], {"key": ["é3", "é11", "nobody"]})
    assert sorted(found["feature"].tolist()) == [8, 16]
    assert len(tables.read(storage, "winners", where={"key": []})["feature"]) == 0


def test_pandas_and_duckdb_just_work(directory, winners):
    table, rows = winners
    tables.write(directory, table, rows(20), "r1")
    frame = pd.read_parquet(f"{directory.url}/winners")
    assert frame.groupby("layer", observed=True).size().to_dict() == {"features.0": 10, "fc/1": 10}
    assert frame["label"].isna().sum() == 7
    query = (
        "select layer, count(*), max(score) from "
        f"read_parquet('{directory.url}/winners/*/*.parquet', hive_partitioning=true) "
        "group by layer order by layer"
    )
    found = duckdb.sql(query).fetchall()
    scores = frame.groupby("layer", observed=True)["score"].max()
    assert found == [(name, 10, scores[name]) for name in ("fc/1", "features.0")]


def test_layers_called_by_numbers_stay_strings(storage, winners):
    table, rows = winners
    tables.write(storage, table, rows(4, layers=("0", "10")), "r1")
    assert tables.read(storage, "winners")["layer"].tolist() == ["0", "0", "10", "10"]


def test_metadata_describe_the_table(directory, winners):
    table, rows = winners
    (file,) = tables.write(directory, replace(table, by_layer=False), rows(5), "r1")
    schema = pq.read_schema(directory.local(file.path))
    assert json.loads(schema.metadata[b"zfscale.identity"]) == list(table.identity)
    assert json.loads(schema.metadata[b"zfscale.key"]) == list(table.key)
    assert schema.metadata[b"zfscale.table_version"] == b"3"
    assert b"zfscale.version" in schema.metadata
    assert schema.field("score").metadata[b"meaning"] == b"activation"
    assert not schema.field("score").nullable
    assert schema.field("label").nullable


def test_same_bytes_every_time(storage, winners):
    table, rows = winners
    assert tables.write(storage, table, rows(9), "r") == tables.write(storage, table, rows(9), "r")


def test_narrower_numbers_are_widened(storage):
    given = {"id": np.arange(3, dtype=np.uint8), "n": np.arange(3, dtype=np.int32)}
    tables.write(storage, IMAGES, given, "r")
    assert tables.read(storage, "images")["id"].dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": None}, r"missing columns \['n'\]"),
        ({"m": np.arange(3)}, r"unknown \['m'\]"),
        ({"n": np.arange(2)}, "differ in length"),
        ({"n": np.arange(3.0)}, "column n: expected int64, found double"),
        ({"n": np.arange(3, dtype=np.uint64)}, "column n: expected int64, found uint64"),
        ({"n": np.array(["1", "2", "3"], object)}, "column n: expected int64, found string"),
        ({"n": np.zeros(3, bool)}, "column n: expected int64, found bool"),
        ({"n": np.ma.masked_array(np.arange(3), [0, 1, 0])}, "column n: 1 of 3 values are null"),
    ],
)
def test_wrong_columns_are_refused_by_name(storage, change, message):
    columns = {"id": np.arange(3), "n": np.arange(3)} | change
    columns = {name: values for name, values in columns.items() if values is not None}
    with pytest.raises(ValueError, match=f"table images.*{message}"):
        tables.write(storage, IMAGES, columns, "r")
    assert storage.list() == []


def test_two_rows_of_one_key_are_refused(storage):
    with pytest.raises(IntegrityError, match="two rows have the same id"):
        tables.write(storage, IMAGES, {"id": np.array([1, 2, 1]), "n": np.arange(3)}, "r")


def test_empty_table_has_the_columns(storage, winners):
    table, rows = winners
    assert tables.write(storage, table, rows(0), "r") == ()
    with pytest.raises(FileNotFoundError, match="no table winners"):
        tables.read(storage, "winners")
    empty = tables.empty(table)
    tables.write(storage, table, rows(3), "r")
    found = tables.read(storage, "winners")
    assert {name: v.dtype for name, v in empty.items()} == {n: v.dtype for n, v in found.items()}
    assert all(len(values) == 0 for values in empty.values())


def test_stream_and_stale_parts(storage):
    chunks = ({"id": np.arange(n, n + 5)[::-1], "n": np.arange(5)} for n in (0, 5))
    old = tables.write(storage, IMAGES, {"id": np.arange(2), "n": np.arange(2)}, "r", "part-00007")
    new = tables.write_stream(storage, IMAGES, chunks, "r")
    assert tables.remove_stale(storage, "images", [new]) == [old[0].path]
    assert tables.read(storage, "images")["id"].tolist() == list(range(10))


def test_stream_that_fails_leaves_the_old_part(storage):
    tables.write(storage, IMAGES, {"id": np.arange(2), "n": np.arange(2)}, "r")

    def chunks():
        yield {"id": np.arange(5), "n": np.arange(5)}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        tables.write_stream(storage, IMAGES, chunks(), "r")
    assert len(tables.read(storage, "images")["id"]) == 2


def test_empty_stream_is_an_empty_table(storage):
    tables.write_stream(storage, IMAGES, [], "r")
    assert len(tables.read(storage, "images")["id"]) == 0


def test_memory_of_a_stream_is_flat(directory):
    def chunks(n):
        for start in range(0, n, 10_000):
            rows = np.arange(start, start + 10_000)
            yield {"id": rows, "n": rows * 7919 % 10_007}

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    tables.write_stream(directory, IMAGES, chunks(200_000), "r")
    before = peak()
    tables.write_stream(directory, IMAGES, chunks(4_000_000), "r")  # 64 MB of numbers
    assert peak() - before < 32 << 10


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_told_with_a_way_out(directory, winners, damage):
    table, rows = winners
    paths = [file.path for file in tables.write(directory, table, rows(20), "run")]
    path = Path(directory.url) / paths[-1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=r"table winners cannot be read.*zfscale verify"):
        tables.dataset_of(directory, paths)
