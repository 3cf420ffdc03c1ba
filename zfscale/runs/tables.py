"""Final tables: one Parquet dataset each, `<name>/<part>.parquet` or, by layer,
`<name>/layer=<layer>/<part>.parquet`.

Every table carries the id of its run as a column, and in the metadata of its files its version,
its key, the columns that the digest covers, and what each column means. Column conventions are
those of `columns.py`. Knows nothing of what a table is about.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import IO
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


@contextmanager
def writing(
    storage: Storage, run_id: str, published_as: Callable[[str], str] = str
) -> Iterator[Writer]:
    """Write the tables of one publication: they replace what was there when the block ends well.

    `published_as` maps the name that an analysis gives a table to the one it has in the run.
    After an error nothing is replaced.
    """
    with ExitStack() as streams:
        writer = Writer(storage, run_id, published_as, streams)
        yield writer
        writer.close()


class Writer:
    """Takes the rows of several tables, in whatever order they come. Made by `writing`.

    A table is one file, or one for each layer. Each call of `add` becomes row groups of its own,
    sorted by the key of the table. `files` are the published ones, once the block has ended.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        published_as: Callable[[str], str],
        streams: ExitStack,
    ) -> None:
        self.files: list[File] = []
        self._storage, self._run_id = storage, run_id
        self._published_as, self._streams = published_as, streams
        self._parts: dict[str, _Part] = {}

    def add(self, table: Table, columns: Columns) -> None:
        """Add rows. Raises ValueError for a missing, unknown or ill-typed column, and
        IntegrityError for two rows of one key in these rows.
        """
        folder = self._published_as(table.name)
        if not table.by_layer:
            self._add(table, f"{folder}/part-00000.parquet", columns)
            return
        layers = columns["layer"]
        for layer in dict.fromkeys(layers.tolist()):
            rows = {name: values[layers == layer] for name, values in columns.items()}
            self._add(table, f"{folder}/layer={quote(layer, safe='')}/part-00000.parquet", rows)

    def close(self) -> None:
        """Write what ends each file."""
        self.files = [part.close() for part in self._parts.values()]

    def _add(self, table: Table, path: str, columns: Columns) -> None:
        if path not in self._parts:
            stream = self._streams.enter_context(self._storage.writing(path))
            self._parts[path] = _Part(table, path, stream)
            # After an error too, while there is a stream to close it on.
            self._streams.callback(self._parts[path].release)
        self._parts[path].add(_sorted(table, columns, self._run_id))


class _Part:
    """One Parquet file while it is written."""

    def __init__(self, table: Table, path: str, stream: IO[bytes]) -> None:
        self._table, self._path, self._stream, self._rows = table.name, path, stream, 0
        schema = arrow_schema(replace(table, name=path.partition("/")[0]))
        strings = [field.name for field in schema if pa.types.is_string(field.type)]
        self._writer = pq.ParquetWriter(
            stream, schema, compression="zstd", use_dictionary=strings, write_page_checksum=True
        )

    def add(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=GROUP_ROWS)
        self._rows += rows.num_rows

    def close(self) -> File:
        self._writer.close()
        size = self._stream.tell()
        self._stream.seek(0)
        digest = hashlib.file_digest(self._stream, "sha256")  # type: ignore[arg-type]
        return File(self._path, digest.hexdigest(), size, self._table, self._rows)

    def release(self) -> None:
        """Let go of the file as it is."""
        self._writer.close()


def read(
    storage: Storage,
    paths: Sequence[str],
    columns: Sequence[str] | None = None,
    where: Where | None = None,
) -> Columns:
    """The rows in the files of a published table, all or those that match `where`, in their order.

    A table by layer has its column `layer`. Raises as `dataset_of`.
    """
    rows = dataset_of(storage, paths).to_table(
        columns=columns, filter=expression(where) if where else None
    )
    return {field.name: from_arrow(rows[field.name], field.nullable) for field in rows.schema}


def empty(table: Table) -> Columns:
    """A table without rows, with the columns that `read` gives."""
    rows = arrow_schema(replace(table, by_layer=False)).empty_table()
    return {field.name: from_arrow(rows[field.name], field.nullable) for field in rows.schema}


def dataset_of(storage: Storage, paths: Sequence[str]) -> ds.Dataset:
    """The table that some files make up: their footers are read, no rows.

    The metadata of its schema is that of `schema.py`.

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
