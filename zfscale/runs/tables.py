"""Final tables: one Parquet dataset each, `<name>/<part>.parquet` or, by layer,
`<name>/layer=<layer>/<part>.parquet`.

Every table carries the id of its run as a column, and in the metadata of its files its version,
its key, the columns that the digest covers, and what each column means. Column conventions are
those of `columns.py`. Knows nothing of what a table is about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from zfscale.errors import IntegrityError
from zfscale.records import Columns, File, Table
from zfscale.runs.columns import Where, expression, from_arrow
from zfscale.runs.schema import arrow_schema, arrow_table
from zfscale.storage.base import Storage

PARTITIONING = ds.partitioning(pa.schema([("layer", pa.string())]), flavor="hive")
GROUP_ROWS = 1 << 16
_PART = re.compile(r"/part-\d{5}\.parquet$")


def write(
    storage: Storage, table: Table, columns: Columns, run_id: str, part: str = "part-00000"
) -> tuple[File, ...]:
    """Publish one part of a table, one file or one per layer; each replaces its predecessor whole.

    Raises ValueError for a missing, unknown or ill-typed column, and for two rows of one key.
    """
    if not table.by_layer:
        return (write_stream(storage, table, [columns], run_id, part),)
    files = []
    layers = columns["layer"]
    for layer in dict.fromkeys(layers.tolist()):
        rows = {name: values[layers == layer] for name, values in columns.items()}
        path = f"{table.name}/layer={quote(layer, safe='')}/{part}.parquet"
        files.append(_write(storage, table, [rows], run_id, path))
    return tuple(files)


def write_stream(
    storage: Storage,
    table: Table,
    chunks: Iterable[Columns],
    run_id: str,
    part: str = "part-00000",
) -> File:
    """Publish a part that does not fit in memory: each chunk is sorted by itself and becomes
    row groups of its own. Not for tables by layer.
    """
    if table.by_layer:
        raise ValueError(f"table {table.name} is written layer by layer, not as a stream")
    return _write(storage, table, chunks, run_id, f"{table.name}/{part}.parquet")


def read(
    storage: Storage, name: str, columns: Sequence[str] | None = None, where: Where | None = None
) -> Columns:
    """The rows of a published table, all or those that match `where`, in the order of its files.

    A table by layer has its column `layer`. Raises FileNotFoundError if there is no such table.
    """
    dataset = open_dataset(storage, name)
    found = dataset.to_table(columns=columns, filter=expression(where) if where else None)
    return {field.name: from_arrow(found[field.name], field.nullable) for field in found.schema}


def empty(table: Table) -> Columns:
    """A table without rows, with the columns that `read` gives."""
    rows = arrow_schema(replace(table, by_layer=False)).empty_table()
    return {field.name: from_arrow(rows[field.name], field.nullable) for field in rows.schema}


def open_dataset(storage: Storage, name: str) -> ds.Dataset:
    """A published table unread. Its schema metadata is that of `schema.py`."""
    paths = [path for path in storage.list(name) if path.endswith(".parquet")]
    if not paths:
        raise FileNotFoundError(f"{storage.url}: there is no table {name}")
    return dataset_of(storage, paths)


def dataset_of(storage: Storage, paths: Sequence[str]) -> ds.Dataset:
    """The table that some files make up: their footers are read, no rows.

    Raises IntegrityError for a file that is missing or no Parquet.
    """
    by_layer = any("/layer=" in path for path in paths)
    try:
        found = ds.dataset(
            paths,
            filesystem=storage.filesystem(),
            format="parquet",
            partitioning=PARTITIONING if by_layer else None,
        )
        for fragment in found.get_fragments():
            fragment.ensure_complete_metadata()
    except (pa.ArrowInvalid, OSError) as error:
        name = paths[0].partition("/")[0]
        raise IntegrityError(
            f"{storage.url}: the table {name} cannot be read: {error}; `zfscale verify` names "
            "each damaged file, and the job that published the table writes it again"
        ) from error
    return found


def remove_stale(storage: Storage, name: str, current: Iterable[File]) -> list[str]:
    """Delete the parts of a table that its latest publication did not write; their paths.

    Files that are not named as parts are somebody else's and stay. Call it when the manifest no
    longer names the parts, and before the table counts as published.
    """
    keep = {file.path for file in current}
    stale = [path for path in storage.list(name) if _PART.search(path) and path not in keep]
    for path in stale:
        storage.delete(path)
    return stale


def _write(
    storage: Storage, table: Table, chunks: Iterable[Columns], run_id: str, path: str
) -> File:
    with storage.writing(path) as stream:
        with _parquet(stream, table) as writer:
            for columns in chunks:
                writer.write_table(_sorted(table, columns, run_id), row_group_size=GROUP_ROWS)
        size = stream.tell()
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]
    return File(path, digest.hexdigest(), size)


@contextmanager
def _parquet(stream: IO[bytes], table: Table) -> Iterator[Any]:
    schema = arrow_schema(table)
    with pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        use_dictionary=[field.name for field in schema if pa.types.is_string(field.type)],
        write_page_checksum=True,
    ) as writer:
        yield writer


def _sorted(table: Table, columns: Columns, run_id: str) -> pa.Table:
    rows = arrow_table(table, columns, run_id)
    key = [name for name in table.key if name in rows.schema.names]
    rows = rows.sort_by([(name, "ascending") for name in key])
    if rows.select(key).group_by(key).aggregate([]).num_rows != rows.num_rows:
        raise IntegrityError(
            f"table {table.name}: two rows have the same {', '.join(table.key)}; "
            "the analysis that gave them has a mistake, or its input repeats"
        )
    return rows
