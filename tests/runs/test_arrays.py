"""Arrays: one shard a block, same bytes every time, readable by zarr alone."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from zfscale.errors import IntegrityError
from zfscale.records import Array, Block
from zfscale.runs import arrays
from zfscale.storage import open_storage

SWITCHES = Array(
    "switches.zarr/features.0/pool.1",
    (10, 3, 4, 5, 5),
    "uint8",
    4,
    255,
    ("channel", "y", "x"),
    "offset of the maximum",
)


def fill(storage, array, seed=0):
    """An array full of numbers, one record absent; its data and files."""
    data = np.random.default_rng(seed).integers(0, 9, array.shape).astype(array.dtype)
    data[2, 1] = array.fill
    files = list(arrays.create(storage, array))
    for start in range(0, array.shape[0], array.shard):
        files += arrays.write(storage, Block(array, start, data[start : start + array.shard]))
    return data, files


def test_round_trip(storage):
    data, files = fill(storage, SWITCHES)
    assert sorted(f.path for f in files) == storage.list()
    for start, stop in ((0, 10), (3, 9), (4, 8), (9, 10), (5, 5)):
        assert (arrays.read(storage, SWITCHES.path, start, stop) == data[start:stop]).all()


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 3), st.sampled_from(["u1", "<f4"]))
@settings(max_examples=25, deadline=None)
def test_any_shape(features, shard, k, dtype):
    storage = open_storage("memory://arrays/run")
    array = Array(f"p.zarr/{features}-{shard}-{k}-{dtype}", (features, k, 2, 3), dtype, shard, 7)
    data = np.random.default_rng(0).integers(0, 255, array.shape).astype(dtype)
    arrays.create(storage, array)
    for start in range(0, features, shard):
        assert len(arrays.write(storage, Block(array, start, data[start : start + shard]))) == 1
    read = arrays.read(storage, array.path, 0, features)
    assert read.dtype == data.dtype
    assert read.tobytes() == data.tobytes()


def test_same_bytes_every_time(storage, directory):
    _, files = fill(storage, SWITCHES)
    assert fill(storage, SWITCHES)[1] == files
    assert fill(directory, SWITCHES)[1] == files


def test_never_written_records_hold_the_fill(storage):
    arrays.create(storage, SWITCHES)
    assert (arrays.read(storage, SWITCHES.path, 0, 10) == 255).all()
    nothing = np.full((4, *SWITCHES.shape[1:]), 255, np.uint8)
    assert arrays.write(storage, Block(SWITCHES, 4, nothing)) == ()


def test_zarr_opens_it(directory):
    data, _ = fill(directory, SWITCHES)
    group = zarr.open(f"{directory.url}/switches.zarr")
    found = group["features.0/pool.1"]
    assert (found[:] == data).all()
    assert found.chunks == (1, 1, 4, 5, 5)
    assert found.shards == (4, 3, 4, 5, 5)
    assert found.metadata.dimension_names == ("feature", "rank", "channel", "y", "x")
    assert found.attrs["meaning"] == "offset of the maximum"
    assert [name for name, _ in group.groups()] == ["features.0"]


def test_another_array_in_its_place(storage):
    arrays.create(storage, SWITCHES)
    other = Array(SWITCHES.path, (10, 4, 4, 5, 5), "uint8", 4, 255)
    with pytest.raises(IntegrityError, match="another shape or type"):
        arrays.create(storage, other)


@pytest.mark.parametrize("path", ["x", "a.zarr", "a/b", "a.zarr/../b", "a.zarr//b", "a.zarr/__x"])
def test_bad_paths(storage, path):
    with pytest.raises(ValueError, match="path"):
        arrays.create(storage, Array(path, (1, 1, 1), "uint8", 1, 0))
    assert storage.list() == []


@pytest.mark.parametrize(
    ("start", "shape", "dtype"),
    [(1, (4, 3, 4, 5, 5), "uint8"), (0, (3, 3, 4, 5, 5), "uint8"), (0, (4, 3, 4, 5, 5), "int8")],
)
def test_a_block_must_be_one_shard(storage, start, shape, dtype):
    with pytest.raises(ValueError, match=r"switches\.zarr"):
        arrays.write(storage, Block(SWITCHES, start, np.zeros(shape, dtype)))


def test_damage_is_found(storage):
    _, files = fill(storage, SWITCHES)
    shard = next(file for file in files if "/c/1/" in file.path)
    data = bytearray(storage.read(shard.path))
    for at in (5, len(data) // 2, len(data) - 5):
        bad = data.copy()
        bad[at] ^= 4
        storage.publish(shard.path, bytes(bad))
        with pytest.raises(IntegrityError, match="run the job again"):
            arrays.read(storage, SWITCHES.path, 4, 8)


def test_missing_array(storage):
    with pytest.raises(FileNotFoundError, match="no array"):
        arrays.read(storage, "switches.zarr/conv9/pool1", 0, 1)
