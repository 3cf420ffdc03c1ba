"""Columns between numpy and Arrow, both ways without loss. Knows no file.

Conventions, the same in both directions: numbers and booleans are one-dimensional arrays;
those that may be null are masked arrays. Strings are object arrays of str, None for null.
Lists are object arrays of one-dimensional numeric arrays (or one two-dimensional array, one row
a list). Bytes are object arrays of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Where = Mapping[str, str | tuple[int, int] | list[str]]
"""Rows wanted: a column to the value it must have, to (start, stop) of a range of integers, or
to a list of values."""


def to_arrow(values: NDArray[Any]) -> pa.Array:
    """A column as Arrow has it. An object column without any value counts as strings."""
    if values.ndim == 2:
        return _two_dimensional(values)
    if values.dtype.kind in "biuf":
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        return pa.array(np.ma.getdata(values), mask=mask, from_pandas=False)
    items = values.tolist()
    first = next((item for item in items if item is not None), "")
    if isinstance(first, bytes):
        return pa.array(items, pa.large_binary())
    if isinstance(first, np.ndarray):
        return _lists(values, first.dtype)
    return pa.array(items, pa.string())


def is_nullable(values: NDArray[Any]) -> bool:
    """Whether a column may hold nulls: masked arrays and objects may."""
    return isinstance(values, np.ma.MaskedArray) or values.dtype.kind not in "biuf"


def from_arrow(column: pa.Array | pa.ChunkedArray, nullable: bool) -> NDArray[Any]:
    """A column as numpy has it; `nullable` as its field in the schema says."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _objects([None if item is None else item for item in _split(array)])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        mask = np.asarray(array.is_null())
        data = array.fill_null(False if pa.types.is_boolean(kind) else 0) if mask.any() else array
        values = np.asarray(data.to_numpy(zero_copy_only=False))
        return np.ma.masked_array(values, mask) if nullable else values
    return _objects(array.to_pylist())


def expression(where: Where) -> pc.Expression:
    """Rows wanted as an Arrow expression."""
    result = pc.scalar(True)
    for name, wanted in where.items():
        if isinstance(wanted, tuple):
            start, stop = wanted
            result &= (pc.field(name) >= start) & (pc.field(name) < stop)
        elif isinstance(wanted, list):
            result &= pc.field(name).isin(pa.array(wanted, pa.string()))
        else:
            result &= pc.field(name) == wanted
    return result


def _lists(values: NDArray[Any], dtype: np.dtype[Any]) -> pa.Array:
    lengths = np.array([0 if item is None else len(item) for item in values], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [item for item in values if item is not None]
    wrong = {item.dtype for item in present} - {dtype}
    if wrong:
        raise ValueError(f"lists of one column differ in type: {dtype} and {wrong.pop()}")
    mask = pa.array([item is None for item in values], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(present)), mask=mask)


def _two_dimensional(values: NDArray[Any]) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))


def _split(array: pa.Array) -> list[NDArray[Any] | None]:
    offsets = array.offsets.to_numpy().tolist()
    values = array.values.to_numpy(zero_copy_only=False)
    present = array.is_valid().to_pylist()
    bounds = zip(offsets, offsets[1:], present, strict=False)
    return [values[start:stop] if valid else None for start, stop, valid in bounds]


def _objects(items: list[Any]) -> NDArray[Any]:
    values = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):  # one by one: numpy would stack arrays of one length
        values[index] = item
    return values
