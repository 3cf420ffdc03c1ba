"""One hash of all results of a run, independent of file layout, order of rows, partitioning,
compression, time and machine; floats count bit by bit.

A table or an array is a multiset of rows: its hash is the sum, modulo 2^256, of the SHA-256 of
each row in a canonical encoding. Of a table the columns named by its `identity` count; of
`images` the rows that ended ok; of an array the records that are not all fill. Memory stays at
one batch of rows and one shard.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import zarr
from numpy.typing import NDArray

from zfscale.records import Status
from zfscale.runs import arrays
from zfscale.runs import manifest as manifests
from zfscale.runs.columns import from_arrow
from zfscale.runs.tables import dataset_of
from zfscale.storage.base import Storage

MODULUS = 1 << 256
BATCH = 1 << 15
"""Rows that are hashed at a time."""


def digest(storage: Storage) -> str:
    """The digest of a run's tables and arrays as its manifest lists them, 64 hex digits."""
    return digest_of(storage, {file.path for file in manifests.load(storage).files()})


def digest_of(storage: Storage, paths: Iterable[str], batch_rows: int = BATCH) -> str:
    """The digest of the tables and arrays that some paths of a run make up.

    `batch_rows` of a table are in memory at a time; their number changes nothing.
    """
    tables: dict[str, list[str]] = {}
    lines = []
    for path in sorted(paths):
        name, _, rest = path.partition("/")
        if name.endswith(".zarr"):
            if rest.endswith(f"/{arrays.METADATA}") and (line := _array(storage, path)):
                lines.append(line)
        elif rest.endswith(".parquet") and name != "segments":
            tables.setdefault(name, []).append(path)
    lines += [_table(storage, name, files, batch_rows) for name, files in tables.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _table(storage: Storage, name: str, paths: list[str], batch_rows: int) -> str:
    dataset = dataset_of(storage, paths)
    metadata = dataset.schema.metadata
    identity = json.loads(metadata[b"zfscale.identity"])
    # `images` of a scan, whatever the scan is called.
    lists_images = name.endswith("images") and "status" in dataset.schema.names
    kept = ds.field("status") == Status.OK.value if lists_images else None
    total, rows = 0, 0
    for batch in dataset.to_batches(columns=identity, filter=kept, batch_size=batch_rows):
        columns = [_cells(from_arrow(batch.column(column), True)) for column in identity]
        for cells in zip(*columns, strict=True):
            total += _hash(b"".join(cells))
        rows += batch.num_rows
    types = [f"{column}:{dataset.schema.field(column).type}" for column in identity]
    version = metadata[b"zfscale.table_version"].decode()
    return json.dumps([name, version, types, rows, f"{total % MODULUS:064x}"])


def _array(storage: Storage, metadata: str) -> str | None:
    path = metadata.removesuffix(f"/{arrays.METADATA}")
    array = arrays.open_array(storage, path)
    if array is None:
        return None  # a group
    total = 0
    absent = np.full(array.shape[2:], array.fill_value, array.dtype).tobytes()
    for feature, rank, record in _records(storage, path, array):
        if record != absent:
            total += _hash(struct.pack("<QQ", feature, rank) + record)
    shape, dtype = list(array.shape), array.dtype.str
    return json.dumps([path, shape, dtype, f"{total % MODULUS:064x}"])


def _records(
    storage: Storage, path: str, array: zarr.Array[Any]
) -> Iterator[tuple[int, int, bytes]]:
    features, shard = array.shape[0], (array.shards or array.chunks)[0]
    for start in range(0, features, shard):
        block = arrays.read(storage, path, start, min(start + shard, features))
        for feature, ranks in enumerate(block, start):
            for rank, record in enumerate(ranks):
                yield feature, rank, record.tobytes()


def _cells(values: NDArray[Any]) -> list[bytes]:
    """Each value as bytes that no other value of its column has, and that tell their own length."""
    if values.dtype.kind == "O":
        return [_object(value) for value in values]
    mask = np.ma.getmaskarray(values)
    data = np.ascontiguousarray(np.ma.filled(values, 0))
    raw = data.view(np.uint8).reshape(len(data), data.itemsize)
    flagged = np.concatenate([mask[:, None].astype(np.uint8), raw], axis=1)
    cells: list[bytes] = flagged.view(f"V{flagged.shape[1]}").reshape(-1).tolist()
    return cells


def _object(value: Any) -> bytes:
    if value is None:
        return b"\1"
    data = value.tobytes() if isinstance(value, np.ndarray) else value.encode()
    return b"\0" + struct.pack("<Q", len(data)) + data


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "little")
