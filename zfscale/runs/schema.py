"""The Arrow schema of a table, with what a reader must know in its metadata.

Metadata of the schema: `zfscale.table`, `zfscale.table_version`, `zfscale.version`,
`zfscale.key` and `zfscale.identity` (JSON lists of columns). Metadata of a column: `meaning`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import zfscale
from zfscale.records import Column, Columns, Table
from zfscale.runs.columns import to_arrow

RUN_ID = Column("run_id", "string", "the run that computed the row")

_TYPES = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
}


def stored_columns(table: Table) -> tuple[Column, ...]:
    """The columns in the files: run_id too, but not a `layer` that lies in the path."""
    stored = [c for c in table.columns if not (table.by_layer and c.name == "layer")]
    return (*stored, RUN_ID)


def arrow_schema(table: Table) -> pa.Schema:
    """The schema of a table's files."""
    fields = [
        pa.field(column.name, arrow_type(column), column.nullable, {"meaning": column.meaning})
        for column in stored_columns(table)
    ]
    metadata = {
        "zfscale.table": table.name,
        "zfscale.table_version": str(table.version),
        "zfscale.version": zfscale.__version__,
        "zfscale.key": json.dumps(table.key),
        "zfscale.identity": json.dumps(table.identity),
    }
    return pa.schema(fields, metadata)


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type that a column's `type` names. Raises ValueError for an unknown one."""
    name = column.type
    inner = name.removeprefix("list<").removesuffix(">")
    if inner not in _TYPES or name not in (inner, f"list<{inner}>"):
        raise ValueError(f"column {column.name}: unknown type {name!r}")
    return _TYPES[inner] if name == inner else pa.list_(_TYPES[inner])


def arrow_table(table: Table, columns: Columns, run_id: str) -> pa.Table:
    """Columns as the table's schema wants them.

    Numbers may be narrower than declared, never wider, and never of another kind. Raises
    ValueError naming table and column.
    """
    names = [column.name for column in table.columns]
    missing = [name for name in names if name not in columns]
    unknown = [name for name in columns if name not in names]
    if missing or unknown:
        raise ValueError(f"table {table.name}: missing columns {missing}, unknown {unknown}")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"table {table.name}: columns differ in length: {sorted(lengths)}")
    run = np.full(lengths.pop(), run_id, dtype=object)
    given = {**columns, RUN_ID.name: run}
    arrays = [_convert(table, column, given[column.name]) for column in stored_columns(table)]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(table))


def _convert(table: Table, column: Column, values: NDArray[Any]) -> pa.Array:
    wanted = arrow_type(column)
    array = to_arrow(values)
    if len(array) == array.null_count:  # nothing to judge the type of an object column by
        array = pa.nulls(len(array), wanted)
    if not _fits(array.type, wanted):
        raise ValueError(
            f"table {table.name}, column {column.name}: expected {column.type}, found {array.type}"
        )
    if array.null_count and not column.nullable:
        raise ValueError(
            f"table {table.name}, column {column.name}: {array.null_count} of {len(array)} values "
            "are null, but the column is not nullable"
        )
    return array.cast(wanted)


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and _fits(found.value_type, wanted.value_type)
    if found == wanted:
        return True
    numeric = (pa.types.is_integer, pa.types.is_floating)
    same_kind = any(is_kind(found) and is_kind(wanted) for is_kind in numeric)
    return same_kind and np.can_cast(found.to_pandas_dtype(), wanted.to_pandas_dtype())
