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
from stored import paths, write, write_one

from zfscale.errors import IntegrityError
from zfscale.records import Column, Table, published_name
from zfscale.runs import tables

IMAGES = Table(
    "images", 1, (Column("id", "int64", "identity"), Column("n", "int64", "any")), ("id",), ("id",)
)


def test_round_trip_is_sorted_and_by_layer(storage, winners):
    table, rows = winners
    given = rows(20)
    files = write_one(storage, table, given, "r1")
    assert paths(files) == [
        "winners/layer=fc%2F1/part-00000.parquet",
        "winners/layer=features.0/part-00000.parquet",
    ]
    assert [(f.table, f.rows) for f in files] == [("winners", 10)] * 2
    found = tables.read(storage, paths(files))
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
    files = paths(write_one(storage, table, rows(20)))
    found = tables.read(storage, files, ["feature"], {"layer": "fc/1", "feature": (4, 9)})
    assert list(found) == ["feature"]
    assert found["feature"].tolist() == [4, 6, 8]
    found = tables.read(storage, files, ["feature"], {"key": ["é3", "é11", "nobody"]})
    assert sorted(found["feature"].tolist()) == [8, 16]
    assert len(tables.read(storage, files, where={"key": []})["feature"]) == 0


def test_pandas_and_duckdb_just_work(directory, winners):
    table, rows = winners
    write_one(directory, table, rows(20))
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
    files = write_one(storage, table, rows(4, layers=("0", "10")))
    assert tables.read(storage, paths(files))["layer"].tolist() == ["0", "0", "10", "10"]


def test_metadata_describe_the_table(directory, winners):
    table, rows = winners
    (file,) = write_one(directory, replace(table, by_layer=False), rows(5))
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
    assert write_one(storage, table, rows(9)) == write_one(storage, table, rows(9))


def test_narrower_numbers_are_widened(storage):
    given = {"id": np.arange(3, dtype=np.uint8), "n": np.arange(3, dtype=np.int32)}
    files = write_one(storage, IMAGES, given)
    assert tables.read(storage, paths(files))["id"].dtype == np.int64


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
        write_one(storage, IMAGES, columns)
    assert storage.sizes() == {}


def test_two_rows_of_one_key_are_refused(storage):
    with pytest.raises(IntegrityError, match="two rows have the same id"):
        write_one(storage, IMAGES, {"id": np.array([1, 2, 1]), "n": np.arange(3)})
    assert storage.sizes() == {}


@pytest.mark.parametrize("by_layer", [True, False])
def test_a_table_without_rows_is_published_with_its_columns(storage, winners, by_layer):
    """Nothing names a layer then, so there is one file, and none once there are rows."""
    table, rows = winners
    table = replace(table, by_layer=by_layer)
    (file,) = write_one(storage, table, rows(0))
    assert (file.path, file.table, file.rows) == ("winners/part-00000.parquet", "winners", 0)
    described = tables.empty(table)
    none = tables.read(storage, [file.path])
    again = write(storage, [(table, rows(0)), (table, rows(3)), (table, rows(0))])
    some = tables.read(storage, paths(again))
    assert len(some["feature"]) == 3
    assert len(again) == (2 if by_layer else 1)
    for empty in (described, none):
        assert {name: v.dtype for name, v in empty.items()} == {n: v.dtype for n, v in some.items()}
        assert all(len(values) == 0 for values in empty.values())
    assert tables.remove_stale(storage, "winners", again) == ([file.path] if by_layer else [])


def test_a_table_by_layer_without_rows_is_still_checked(storage, winners):
    table, rows = winners
    with pytest.raises(ValueError, match=r"table winners: missing columns \['rank'\]"):
        write_one(storage, table, {n: v for n, v in rows(0).items() if n != "rank"})
    assert storage.sizes() == {}


def test_several_tables_in_any_order(storage, winners):
    """Rows of three tables take turns; each of them is there once, and whole."""
    table, rows = winners
    whole = replace(table, name="whole", by_layer=False)
    made = rows(40)
    ids = np.arange(40)[::-1].copy()
    given = []
    for start in (30, 0, 20, 10):
        part = {name: values[start : start + 10] for name, values in made.items()}
        images = {"id": ids[start : start + 10], "n": ids[start : start + 10] * 2}
        given += [(table, part), (IMAGES, images), (whole, part)]
    files = write(storage, given)
    assert (
        paths(files)
        == storage.list()
        == [
            "images/part-00000.parquet",
            "whole/part-00000.parquet",
            "winners/layer=fc%2F1/part-00000.parquet",
            "winners/layer=features.0/part-00000.parquet",
        ]
    )
    assert [(file.table, file.rows) for file in files] == [
        ("images", 40), ("whole", 40), ("winners", 20), ("winners", 20),
    ]  # fmt: skip
    found = tables.read(storage, paths(files)[:1])
    assert (found["n"] == found["id"] * 2).all()
    # A part is sorted in itself; the parts stay in the order in which they came.
    assert found["id"].tolist() == [*range(10), *range(30, 40), *range(10, 20), *range(20, 30)]
    for name in ("whole", "winners"):
        read = tables.read(storage, [path for path in paths(files) if path.startswith(name)])
        order = np.argsort(read["feature"])
        expected = np.argsort(made["feature"])
        assert read["score"][order].tolist() == made["score"][expected].tolist()
        assert read["layer"][order].tolist() == made["layer"][expected].tolist()


def test_tables_are_called_as_the_run_calls_them(storage):
    rows = {"id": np.arange(2), "n": np.arange(2)}
    (file,) = write(storage, [(IMAGES, rows)], "r", lambda name: f"deep_{name}")
    assert (file.path, file.table) == ("deep_images/part-00000.parquet", "images")
    with storage.open(file.path) as stream:
        assert pq.read_schema(stream).metadata[b"zfscale.table"] == b"deep_images"


@pytest.mark.parametrize(
    ("default", "kind", "name", "published"),
    [
        ("occlusion", "occlusion", "occlusion", "occlusion"),
        ("occlusion", "occlusion", "small", "small"),
        ("occlusion_images", "occlusion", "small", "small_images"),
        ("winners", "scan", "deep", "deep_winners"),
        ("winners", "scan", "scan", "winners"),
        ("switches.zarr", "switches", "deep-switches", "deep-switches.zarr"),
        ("projections.zarr", "deconvolve", "deep", "deep_projections.zarr"),
        ("scanner", "scan", "deep", "deep_scanner"),  # begins like the kind, and is another word
    ],
)
def test_published_names(default, kind, name, published):
    assert published_name(default, kind, name) == published


def test_stale_parts_are_those_of_no_current_file(storage):
    rows = {"id": np.arange(2), "n": np.arange(2)}
    files = write_one(storage, IMAGES, rows)
    stale = ["images/part-00007.parquet", "images/layer=conv1/part-00000.parquet"]
    others = ["images/notes.parquet", "imagesque/part-00001.parquet"]
    for path in stale + others:
        storage.publish(path, b"")
    assert tables.remove_stale(storage, "images", files) == sorted(stale)
    assert storage.list() == sorted([*paths(files), *others])


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_error_leaves_what_was_published_as_it_was(storage, winners):
    """Of every table, also of one whose rows were all given, and of one that is new."""
    table, rows = winners
    write_one(storage, IMAGES, {"id": np.arange(2), "n": np.arange(2)})
    write_one(storage, table, rows(4))
    before = {path: storage.read(path) for path in storage.list()}
    new = replace(IMAGES, name="new")

    def given():
        yield IMAGES, {"id": np.arange(5), "n": np.arange(5)}
        yield table, rows(9)
        yield new, {"id": np.arange(5), "n": np.arange(5)}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(storage, given())
    assert {path: storage.read(path) for path in storage.sizes()} == before


def test_memory_of_many_rows_is_flat(directory):
    def given(n):
        for start in range(0, n, 10_000):
            rows = np.arange(start, start + 10_000)
            yield IMAGES, {"id": rows, "n": rows * 7919 % 10_007}

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    write(directory, given(200_000))
    before = peak()
    write(directory, given(4_000_000))  # 64 MB of numbers
    assert peak() - before < 32 << 10


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_told_with_a_way_out(directory, winners, damage):
    table, rows = winners
    files = paths(write_one(directory, table, rows(20)))
    path = Path(directory.url) / files[-1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=r"table winners cannot be read.*zfscale verify"):
        tables.dataset_of(directory, files)
