"""Rows that a task collects one by one, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.records import Column, Columns

_NUMBERS: dict[str, type] = {
    "int64": np.int64,
    "float32": np.float32,
    "float64": np.float64,
    "bool": np.bool_,
}


def columns(description: Sequence[Column], rows: Sequence[Sequence[Any]]) -> Columns:
    """Rows, one value a column, as columns; None becomes a masked number."""
    values = list(zip(*rows, strict=True)) or [()] * len(description)
    return {
        column.name: _column(column, cells)
        for column, cells in zip(description, values, strict=True)
    }


def stack(description: Sequence[Column], parts: Sequence[Columns]) -> Columns:
    """The rows of all parts; without any part, no rows."""
    if not parts:
        return columns(description, [])
    return {name: np.ma.concatenate([part[name] for part in parts]) for name in parts[0]}


def _column(column: Column, values: Sequence[Any]) -> NDArray[Any]:
    kind = _NUMBERS.get(column.type)
    if kind is None:
        array = np.empty(len(values), object)
        for at, value in enumerate(values):  # numpy would take lists of one length for a matrix
            array[at] = value
        return array
    if column.nullable:
        missing = [value is None for value in values]
        filled = [0 if value is None else value for value in values]
        return np.ma.masked_array(np.array(filled, kind), missing)
    return np.array(values, kind)
