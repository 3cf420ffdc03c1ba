"""Segments: the immutable tables that tasks leave behind, one Parquet file each.

A segment lies at `segments/<analysis>/<task>-<table>-<first 16 digits of SHA-256>.parquet`:
the same result has the same name and bytes, and two different results never overwrite each
other. Column conventions are those of `columns.py`. Knows nothing of which tasks are committed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zfscale.errors import IntegrityError
from zfscale.records import Columns, File, Task
from zfscale.runs.columns import Where, expression, from_arrow, is_nullable, to_arrow
from zfscale.storage import base as stores
from zfscale.storage.base import Storage

GROUP_BYTES = 8 << 20
"""Most bytes in a row group before compression, so that a reader of some rows reads little."""
GROUP_ROWS = 1 << 16


def path(analysis: str, task: str, table: str, sha256: str) -> str:
    """Where a table of a task lies."""
    return f"segments/{analysis}/{task}-{table}-{sha256[:16]}.parquet"


def write(storage: Storage, task: Task, table: str, columns: Columns) -> File:
    """Publish a table of a task. The bytes depend on the columns alone.

    Rows stay in the given order. Sort them by the columns that readers select on: row groups
    that cannot hold a selected row are skipped.
    """
    if not table.isidentifier():
        raise ValueError(f"not a table name: {table!r}")
    data = encode(columns)
    digest = stores.file("", data).sha256
    place = path(task.analysis, task.id, table, digest)
    storage.publish(place, data)
    rows = len(next(iter(columns.values()), ()))
    return File(place, digest, len(data), table, rows)


def read(
    storage: Storage, file: File, columns: Sequence[str] | None = None, where: Where | None = None
) -> Columns:
    """The rows of a segment, all or those that match `where`; all columns or the named ones.

    A process checks the SHA-256 of each segment once, before its first use; every later read
    checks the page checksums. Raises IntegrityError for damaged bytes.
    """
    verify(storage, file)
    try:
        with storage.open(file.path) as stream:
            reader = pq.ParquetFile(stream, page_checksum_verification=True)
            return _select(reader, columns, where or {})
    except (OSError, pa.ArrowInvalid) as error:
        raise IntegrityError(f"{storage.url}/{file.path}: cannot be read: {error}") from error


def encode(columns: Columns) -> bytes:
    """The Parquet file of some columns."""
    arrays = {name: to_arrow(values) for name, values in columns.items()}
    fields = [pa.field(name, arrays[name].type, is_nullable(columns[name])) for name in arrays]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    simple = [field.name for field in fields if not _is_bulky(field.type)]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[f.name for f in fields if pa.types.is_string(f.type)],
        write_statistics=simple,
        write_page_checksum=True,
    ) as writer:
        size = max(1, GROUP_BYTES * table.num_rows // max(table.nbytes, 1))
        writer.write_table(table, row_group_size=min(size, GROUP_ROWS))
    return sink.getvalue()


@lru_cache(maxsize=100_000)
def verify(storage: Storage, file: File) -> None:
    """Check a segment against its record, once per process. Raises IntegrityError."""
    try:
        found, size = stores.checksum(storage, file.path)
    except FileNotFoundError:
        found, size = "no file", 0
    if (found, size) != (file.sha256, file.size):
        raise IntegrityError(
            f"{storage.url}/{file.path}: expected SHA-256 {file.sha256} ({file.size} bytes), "
            f"found {found} ({size} bytes); delete the file and run the job again: "
            "its task is then done again"
        )


def _select(reader: pq.ParquetFile, columns: Sequence[str] | None, where: Where) -> Columns:
    schema = reader.schema_arrow
    wanted = list(columns) if columns is not None else schema.names
    needed = list(dict.fromkeys([*wanted, *where]))
    groups = [at for at in range(reader.num_row_groups) if _may_match(reader, at, where)]
    parts = []
    for group in groups:  # filtered one by one, so that only the rows wanted stay in memory
        part = reader.read_row_group(group, columns=needed)
        parts.append(part.filter(expression(where)) if where else part)
    empty = pa.schema([schema.field(name) for name in needed]).empty_table()
    table = pa.concat_tables([empty, *parts])
    return {name: from_arrow(table[name], schema.field(name).nullable) for name in wanted}


def _may_match(reader: pq.ParquetFile, group: int, where: Where) -> bool:
    metadata = reader.metadata.row_group(group)
    for name, wanted in where.items():
        statistics = metadata.column(reader.schema_arrow.names.index(name)).statistics
        if statistics is None or not statistics.has_min_max or isinstance(wanted, list):
            continue
        low, high = (wanted[0], wanted[1] - 1) if isinstance(wanted, tuple) else (wanted, wanted)
        if statistics.max < low or statistics.min > high:
            return False
    return True


def _is_bulky(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_binary(kind))
