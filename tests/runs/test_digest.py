"""The digest sees every value and nothing else."""

import math
import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stored import paths, write, write_one

from zfscale.records import Array, Block, Column, Counts, Receipt, Table
from zfscale.runs import arrays, digest
from zfscale.runs.ledger import Ledger, Planned
from zfscale.storage import open_storage

TABLE = Table(
    "scores",
    1,
    (
        Column("layer", "string", "any"),
        Column("id", "int64", "any"),
        Column("score", "float32", "any"),
        Column("label", "int64", "any", True),
        Column("name", "string", "any", True),
        Column("values", "list<float64>", "any"),
        Column("dead", "bool", "any"),
        Column("where", "string", "not part of the identity"),
    ),
    key=("layer", "id"),
    identity=("layer", "id", "score", "label", "name", "values", "dead"),
)
IMAGES = Table(
    "images",
    1,
    (Column("id", "string", "any"), Column("n", "int64", "any"), Column("status", "string", "any")),
    key=("id",),
    identity=("id", "n"),
)
ARRAY = Array("projections.zarr/conv1", (5, 2, 2, 3), "float32", 2, 0)

floats = st.floats(width=32)
words = st.text(st.sampled_from("abé\0|"), max_size=3)
row = st.fixed_dictionaries(
    {
        "layer": st.sampled_from(["conv1", "conv2", "fc/1"]),
        "score": floats,
        "label": st.none() | st.integers(-3, 3),
        "name": st.none() | words,
        "values": st.lists(st.floats(), max_size=3),
        "dead": st.booleans(),
        "where": words,
    }
)
rows = st.lists(row, min_size=1, max_size=8).map(
    lambda found: [{**one, "id": at} for at, one in enumerate(found)]
)


def to_columns(found):
    lists = np.empty(len(found), object)
    for at, one in enumerate(found):
        lists[at] = np.array(one["values"], np.float64)
    label = [one["label"] for one in found]
    return {
        "id": np.array([one["id"] for one in found], np.int64),
        "score": np.array([one["score"] for one in found], np.float32),
        "label": np.ma.masked_array([v or 0 for v in label], [v is None for v in label]),
        "values": lists,
        "dead": np.array([one["dead"] for one in found], bool),
    } | {
        name: np.array([one[name] for one in found], object) for name in ("layer", "name", "where")
    }


def digest_rows(parts, table=TABLE, run_id="r", rewrite=None):
    """The digest of rows, given in some parts."""
    storage = open_storage(f"memory://{uuid.uuid4().hex}/run")
    files = paths(write(storage, [(table, to_columns(found)) for found in parts], run_id))
    if rewrite:
        for path in files:
            rewrite(storage, path)
    return digest.digest_of(storage, files)


def in_files(parts):
    """The digest of rows whose parts are files of one table."""
    storage = open_storage(f"memory://{uuid.uuid4().hex}/run")
    files = []
    for number, found in enumerate(parts, 1):
        (path,) = paths(write_one(storage, TABLE, to_columns(found)))
        files.append(path.replace("00000", f"{number:05}"))
        storage.publish(files[-1], storage.read(path))
    return digest.digest_of(storage, files)


def recompress(storage, path):
    """The same rows in another file: other compression, encoding, row groups."""
    with storage.open(path) as stream:
        table = pq.read_table(stream)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="gzip", use_dictionary=False, row_group_size=1)
    storage.publish(path, sink.getvalue().to_pybytes())


@given(rows, st.randoms())
@settings(max_examples=40)
def test_layout_does_not_matter(found, random):
    expected = digest_rows([found])
    shuffled = random.sample(found, len(found))
    cut = random.randrange(1, len(found) + 1)
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert digest_rows(parts) == expected
    assert in_files(parts[::-1]) == expected
    assert digest_rows([found], rewrite=recompress) == expected
    assert digest_rows(parts, table=replace(TABLE, by_layer=True)) == expected
    assert digest_rows([found], run_id="another run") == expected
    elsewhere = [{**one, "where": "elsewhere"} for one in found]
    assert digest_rows([elsewhere]) == expected


@given(rows, row, st.data())
@settings(max_examples=60)
def test_any_changed_value_shows(found, other, data):
    at = data.draw(st.integers(0, len(found) - 1))
    name = data.draw(st.sampled_from([n for n in TABLE.identity if n != "id"]))
    changed = [dict(one) for one in found]
    changed[at][name] = other[name]
    assume(not same(changed[at][name], found[at][name]))
    assert digest_rows([changed]) != digest_rows([found])


def same(left, right):
    """Equal bit by bit."""
    if isinstance(left, float):
        return np.float32(left).tobytes() == np.float32(right).tobytes()
    if isinstance(left, list):
        return np.array(left, float).tobytes() == np.array(right, float).tobytes()
    return left == right and (left is None) == (right is None)


@given(rows)
@settings(max_examples=15)
def test_a_missing_row_shows(found):
    assume(len(found) > 1)
    assert digest_rows([found[1:]]) != digest_rows([found])


def test_values_cannot_move_between_columns_and_rows():
    base = {"layer": "l", "score": 0.0, "label": None, "dead": False, "where": ""}
    one = [{**base, "id": 0, "name": "ab", "values": []}]
    texts = [{**one[0], "name": "a"}, {**one[0], "name": "b", "id": 1}]
    swapped = [{**one[0], "name": "b"}, {**one[0], "name": "a", "id": 1}]
    assert digest_rows([texts]) != digest_rows([swapped])
    assert digest_rows([[{**one[0], "name": None}]]) != digest_rows([[{**one[0], "name": ""}]])
    assert digest_rows([[{**one[0], "label": 0}]]) != digest_rows([one])
    texts_only = replace(TABLE, identity=("layer", "name"))
    left = [{**one[0], "layer": "a", "name": "bc"}]
    right = [{**one[0], "layer": "ab", "name": "c"}]
    assert digest_rows([left], texts_only) != digest_rows([right], texts_only)
    zeros = [digest_rows([[{**one[0], "score": score}]]) for score in (0.0, -0.0, math.nan)]
    assert len(set(zeros)) == 3


def test_version_name_and_types_count():
    found = [{"layer": "l", "score": 0.0, "label": 1, "dead": False, "where": ""}]
    found = [{**found[0], "id": 0, "name": "", "values": []}]
    narrower = tuple(replace(c, type="float64") if c.name == "score" else c for c in TABLE.columns)
    digests = {
        digest_rows([found], table=table)
        for table in (
            TABLE,
            replace(TABLE, version=2),
            replace(TABLE, name="other"),
            replace(TABLE, columns=narrower),
        )
    }
    assert len(digests) == 4


def test_only_good_images_count(storage):
    def of(ids, statuses):
        columns = {
            "id": np.array(ids, object),
            "n": np.arange(len(ids)),
            "status": np.array(statuses, object),
        }
        return digest.digest_of(storage, paths(write_one(storage, IMAGES, columns)))

    clean = of(["a", "b"], ["ok", "ok"])
    assert of(["a", "b", "c", "d"], ["ok", "ok", "quarantined", "duplicate"]) == clean
    assert of(["a", "b"], ["ok", "quarantined"]) != clean


def digest_array(storage, data, array=ARRAY, drop=()):
    written = paths(arrays.create(storage, array))
    for start in range(0, array.shape[0], array.shard):
        if start not in drop:
            block = Block(array, start, data[start : start + array.shard])
            written += paths(arrays.write(storage, block))
    return digest.digest_of(storage, written)


@given(st.integers(0, 59), floats)
@settings(max_examples=25)
def test_any_changed_value_of_an_array_shows(at, value):
    data = np.arange(60, dtype=np.float32).reshape(ARRAY.shape)
    changed = data.copy()
    changed.flat[at] = value
    assume(changed.tobytes() != data.tobytes())
    store = open_storage(f"memory://{uuid.uuid4().hex}/run")
    assert digest_array(store, changed) != digest_array(store, data)


def test_array_layout_does_not_matter(storage, directory):
    data = np.arange(60, dtype=np.float32).reshape(ARRAY.shape)
    data[2:4] = 0
    expected = digest_array(storage, data)
    assert digest_array(directory, data, replace(ARRAY, shard=3)) == expected
    assert digest_array(open_storage("memory://x/dropped"), data, drop=[2]) == expected
    moved = data[:, ::-1].copy()
    assert digest_array(open_storage("memory://x/moved"), moved) != expected
    other = replace(ARRAY, path="projections.zarr/conv2")
    assert digest_array(open_storage("memory://x/other"), data, other) != expected


def test_digest_of_a_run_is_of_what_is_published(storage, receipt):
    planned = {"scan": Planned("scan"), "deconvolve": Planned("deconvolve")}
    ledger = Ledger.open(storage, {"model": "m"}, planned)
    nothing = digest.digest(storage)
    ledger.commit("scan", [receipt(storage, 1)])
    columns = {name: np.array(["x"], object) for name in ("id", "status")} | {"n": np.arange(1)}
    files = write_one(storage, IMAGES, columns | {"status": np.array(["ok"], object)})
    assert digest.digest(storage) == nothing
    ledger.publish("scan", [*files, *arrays.create(storage, ARRAY)], "hash", Counts())
    with_table = digest.digest(storage)
    shard = arrays.write(storage, Block(ARRAY, 0, np.ones((2, 2, 2, 3), np.float32)))
    ledger.commit("deconvolve", [Receipt("01", shard, Counts(), 1.0)])
    assert len({nothing, with_table, digest.digest(storage)}) == 3
    ledger.withdraw("scan")
    assert digest.digest(storage) == nothing


def test_digest_does_not_depend_on_how_results_came_about(storage, directory, receipt):
    """Tasks, states, seconds and errors do not count, nor the order of analyses."""
    rows = {"id": np.array(["x"], object), "n": np.arange(1), "status": np.array(["ok"], object)}

    def publish(store, names, number):
        ledger = Ledger.open(store, {"model": names}, {name: Planned(name) for name in names})
        for name in names:
            ledger.commit(name, [receipt(store, number, number, name=name)])
        ledger.publish("scan", write_one(store, IMAGES, rows, str(number)), str(number), Counts())
        other = replace(IMAGES, name="other")
        ledger.publish("other", write_one(store, other, rows, str(number)), "hash", Counts())
        return digest.digest(store)

    assert publish(storage, ["scan", "other"], 1) == publish(directory, ["other", "scan"], 2)


def test_a_table_under_another_name_is_another_result(storage):
    """Two analyses of one kind do not cancel each other, nor pass for each other."""
    rows = {"id": np.array(["x"], object), "n": np.arange(1), "status": np.array(["ok"], object)}
    one = write(storage, [(replace(IMAGES, name="scan"), rows)])
    other = write(storage, [(replace(IMAGES, name="scan"), rows)], "r", lambda name: "deep")
    digests = [digest.digest_of(storage, paths(files)) for files in (one, other, one + other)]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("length", [0, 40_000])
def test_batches_do_not_matter(directory, length):
    columns = {
        "id": np.array([f"{n:05}" for n in range(length)], object),
        "n": np.arange(length),
        "status": np.full(length, "ok", object),
    }
    files = paths(write_one(directory, IMAGES, columns))
    expected = digest.digest_of(directory, files)
    assert digest.digest_of(directory, files, batch_rows=777) == expected
