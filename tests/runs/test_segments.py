"""Segments: any columns come back as they were; damage is found; selections read little."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zfscale.errors import IntegrityError
from zfscale.records import Task
from zfscale.runs import segments
from zfscale.storage import open_storage

TASK = Task("scan")
NUMBERS = ["bool", "int8", "uint8", "int32", "int64", "uint64", "float32", "float64"]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def objects(items):
    values = np.empty(len(items), object)
    for at, item in enumerate(items):
        values[at] = item
    return values


@st.composite
def columns(draw):
    """A table with a column of every kind."""
    n = draw(st.integers(0, 12))
    dtype = draw(st.sampled_from(NUMBERS))
    lists = draw(st.lists(hnp.arrays("float64", st.integers(0, 3)), min_size=n, max_size=n))
    strings = draw(st.lists(st.none() | text, min_size=n, max_size=n))
    return {
        "plain": draw(hnp.arrays(dtype, n)),
        "masked": np.ma.masked_array(draw(hnp.arrays(dtype, n)), draw(hnp.arrays(bool, n))),
        "string": objects(strings),
        "lists": objects(lists),
        "bytes": objects(draw(st.lists(st.binary(max_size=9), min_size=n, max_size=n))),
    }


def assert_same(left, right):
    assert list(left) == list(right)
    for name, values in left.items():
        other = right[name]
        if values.dtype == object:
            assert other.dtype == object
            assert [_key(v) for v in values] == [_key(v) for v in other]
        else:
            assert values.dtype == other.dtype
            assert isinstance(values, np.ma.MaskedArray) == isinstance(other, np.ma.MaskedArray)
            mask = np.ma.getmaskarray(values)
            assert (mask == np.ma.getmaskarray(other)).all()
            assert np.ma.getdata(values)[~mask].tobytes() == np.ma.getdata(other)[~mask].tobytes()


def _key(value):
    return (value.dtype, value.tobytes()) if isinstance(value, np.ndarray) else value


@given(columns())
@settings(max_examples=60, deadline=None)
def test_columns_come_back_bit_by_bit(given_columns):
    storage = open_storage("memory://segments/run")
    file = segments.write(storage, TASK, "rows", given_columns)
    assert_same(given_columns, segments.read(storage, file))


def test_special_floats_keep_their_bits(storage):
    bits = np.array([0x7FF8000000000123, 1 << 63, 0x7FF0000000000000, 1], np.uint64)
    values = bits.view(np.float64)
    given_columns = {"plain": values, "masked": np.ma.masked_array(values, [0, 0, 1, 0])}
    file = segments.write(storage, TASK, "rows", given_columns)
    assert_same(given_columns, segments.read(storage, file))


def test_empty_and_unknown_objects_are_strings(storage):
    file = segments.write(storage, TASK, "rows", {"a": objects([]), "b": objects([])})
    rows = segments.read(storage, file, where={"a": "x"})
    assert rows["a"].dtype == object
    assert len(rows["b"]) == 0


def test_two_dimensional_columns_are_lists(storage):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    file = segments.write(storage, TASK, "rows", {"a": values, "b": values[:, 0]})
    assert np.stack(segments.read(storage, file)["a"]).tolist() == values.tolist()


def test_mixed_lists_are_refused():
    lists = objects([np.zeros(1), np.zeros(1, np.float32)])
    with pytest.raises(ValueError, match="float64 and float32"):
        segments.encode({"a": lists})


def test_path_says_analysis_task_table_and_content(storage):
    task = Task("small-scan", payload={"number": 1})
    one = segments.write(storage, task, "rows", {"a": np.array([1, 2])})
    same = segments.write(storage, task, "rows", {"a": np.array([1, 2])})
    other = segments.write(storage, task, "rows", {"a": np.array([2])})
    assert one == same
    assert one.path == f"segments/small-scan/{task.id}-rows-{one.sha256[:16]}.parquet"
    assert storage.list() == sorted([one.path, other.path])
    assert [(file.table, file.rows) for file in (one, other)] == [("rows", 2), ("rows", 1)]


@pytest.mark.parametrize("table", ["", "a-b", "../a", "a/b"])
def test_a_table_that_would_lead_elsewhere_is_refused(storage, table):
    with pytest.raises(ValueError, match="not a table name"):
        segments.write(storage, TASK, table, {"a": np.array([1])})
    assert storage.list() == []


def test_bytes_do_not_depend_on_what_masks_hide():
    left = np.ma.masked_array([1, 2], [True, False])
    right = np.ma.masked_array([7, 2], [True, False])
    assert segments.encode({"a": left}) == segments.encode({"a": right})


@pytest.fixture
def records(storage):
    """100 records of 200 kB: several row groups."""
    random = np.random.default_rng(0)
    made = [random.integers(0, 9, 200_000, np.uint8).tobytes() for _ in range(100)]
    rows = {
        "layer": objects(["conv1"] * 50 + ["conv2"] * 50),
        "feature": np.array([*range(50), *range(50)]),
        "record": objects(made),
    }
    return segments.write(storage, Task("switches"), "switches", rows), made


def test_selection(storage, records):
    file, made = records
    rows = segments.read(storage, file, where={"layer": "conv2", "feature": (10, 13)})
    assert rows["feature"].tolist() == [10, 11, 12]
    assert rows["record"].tolist() == made[60:63]
    rows = segments.read(storage, file, ["record"], {"layer": "conv1", "feature": (49, 60)})
    assert list(rows) == ["record"]
    assert rows["record"].tolist() == made[49:50]
    assert len(segments.read(storage, file, where={"layer": "conv3"})["record"]) == 0
    where = {"layer": ["conv3", "conv2"], "feature": (7, 8)}
    assert segments.read(storage, file, where=where)["record"].tolist() == made[57:58]
    assert len(segments.read(storage, file, where={"layer": []})["record"]) == 0


def test_selection_reads_only_row_groups_that_may_match(storage, records, monkeypatch):
    file, _ = records
    read = []
    real = segments.pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        segments.pq.ParquetFile,
        "read_row_group",
        lambda self, group, **rest: (read.append(group), real(self, group, **rest))[1],
    )
    segments.read(storage, file, where={"layer": "conv1", "feature": (0, 3)})
    assert read == [0, 1]  # the second holds the end of conv1 and the start of conv2
    read.clear()
    segments.read(storage, file)
    assert read == [0, 1, 2]


@pytest.mark.parametrize("at", [0, 500, 900, -20, -1])
def test_a_flipped_bit_is_found(storage, at):
    file = segments.write(storage, TASK, "rows", {"a": np.arange(1000) ** 3 % 71})
    data = bytearray(storage.read(file.path))
    data[at] ^= 1
    storage.publish(file.path, bytes(data))
    with pytest.raises(IntegrityError) as caught:
        segments.read(storage, file)
    assert file.path in str(caught.value)
    assert file.sha256 in str(caught.value)
    assert "run the job again" in str(caught.value)


def test_damage_after_the_first_read_is_found(directory):
    file = segments.write(directory, TASK, "rows", {"a": np.random.default_rng(0).random(99)})
    segments.read(directory, file)
    data = bytearray(directory.read(file.path))
    data[300] ^= 1
    directory.publish(file.path, bytes(data))
    with pytest.raises(IntegrityError):
        segments.read(directory, file)


def test_missing_segment(storage):
    file = segments.write(storage, TASK, "rows", {"a": np.arange(3)})
    storage.delete(file.path)
    with pytest.raises(IntegrityError, match="found no file"):
        segments.read(storage, file)
