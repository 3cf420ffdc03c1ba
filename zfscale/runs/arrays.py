"""Final arrays: Zarr version 3 with sharding. One inner chunk is the record of one
(feature, rank); one shard is a block of features, written whole by one writer.

Shards are encoded in memory and published like any other file, so that a reader never sees half
of one; the bytes depend on the block alone. Knows nothing of what a record means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from zfscale.errors import IntegrityError
from zfscale.records import Array, Block, File
from zfscale.storage import base as stores
from zfscale.storage.base import Storage

METADATA = "zarr.json"
_OURS = re.compile(r"/(zarr\.json|c(/\d+)+)$")


def create(storage: Storage, array: Array) -> tuple[File, ...]:
    """Publish the metadata of an array and of the groups above it; the files.

    Nothing happens where they are already. Raises IntegrityError if other metadata are there.
    """
    parts = array.path.split("/")
    if len(parts) < 2 or not parts[0].endswith(".zarr") or not all(map(_is_safe, parts)):
        raise ValueError(f"not a path for an array: {array.path!r}")
    wanted = {f"{array.path}/{METADATA}": _empty(array)[METADATA]}
    for depth in range(1, len(parts)):
        wanted[f"{'/'.join(parts[:depth])}/{METADATA}"] = _group()
    for path, data in wanted.items():
        if not storage.create(path, data) and storage.read(path) != data:
            raise IntegrityError(
                f"{storage.url}/{path}: there is an array of another shape or type; "
                "use a new run directory, or delete this array"
            )
    return tuple(stores.file(path, data) for path, data in sorted(wanted.items()))


def remove_stale(storage: Storage, store: str, keep: Collection[str]) -> None:
    """Delete the metadata and the shards of a store of arrays, except the paths in `keep`.

    Other files are somebody else's and stay. Call it when the manifest no longer names them as
    published, and before the arrays are created anew.
    """
    for path in storage.list(store):
        if path not in keep and _OURS.search(path):
            storage.delete(path)


def write(storage: Storage, block: Block) -> tuple[File, ...]:
    """Publish the shard that a block is. A block of nothing but fill needs none: no file.

    Raises ValueError if the block is not exactly one shard of its array.
    """
    array = block.array
    stop = min(block.start + array.shard, array.shape[0])
    shape = (stop - block.start, *array.shape[1:])
    if block.start % array.shard or block.data.shape != shape:
        raise ValueError(
            f"{array.path}: {block.data.shape} at feature {block.start} is not one shard of "
            f"{array.shape} by {array.shard}"
        )
    if block.data.dtype != np.dtype(array.dtype):
        raise ValueError(f"{array.path}: expected {array.dtype}, found {block.data.dtype}")
    files = []
    encoded = _encode(array, block.start, stop, block.data)
    for key, data in encoded.items():
        path = f"{array.path}/{key}"
        storage.publish(path, data)
        files.append(stores.file(path, data))
    return tuple(files)


def read(storage: Storage, path: str, start: int, stop: int) -> NDArray[Any]:
    """Features `start` to `stop` of an array, shape (stop - start, k, ...).

    Records that were never written hold the fill. Raises IntegrityError for damaged bytes.
    """
    try:
        metadata = storage.read(f"{path}/{METADATA}")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{storage.url}: there is no array {path}") from error
    array = _open({METADATA: metadata})
    shard = array.shards[0] if array.shards else array.chunks[0]
    objects = {METADATA: metadata}
    for index in range(start // shard, -(-stop // shard)):
        key = _key(index, array.ndim)
        try:
            objects[key] = storage.read(f"{path}/{key}")
        except FileNotFoundError:
            continue
    try:
        return np.asarray(_open(objects)[start:stop])
    except (RuntimeError, ValueError) as error:
        raise IntegrityError(
            f"{storage.url}/{path}: features {start} to {stop} cannot be decoded: {error}; "
            "run the job again to compute them anew"
        ) from error


def open_array(storage: Storage, path: str) -> zarr.Array[Any] | None:
    """The metadata of an array, without its data; None for a group."""
    metadata = storage.read(f"{path}/{METADATA}")
    return None if metadata == _group() else _open({METADATA: metadata})


def _encode(array: Array, start: int, stop: int, data: NDArray[Any]) -> dict[str, bytes]:
    objects = _empty(array)
    store = _store(objects)
    zarr.open_array(store, mode="r+", zarr_format=3)[start:stop] = data
    return {key: value for key, value in _bytes(store).items() if key not in objects}


def _empty(array: Array) -> dict[str, bytes]:
    store = MemoryStore()
    rest = array.shape[2:]
    zarr.create_array(
        store,
        shape=array.shape,
        chunks=(1, 1, *rest),
        shards=(array.shard, array.shape[1], *rest),
        dtype=array.dtype,
        # Its checksum finds a damaged record when it is read, by any reader.
        compressors=ZstdCodec(level=1, checksum=True),
        fill_value=array.fill,
        zarr_format=3,
        dimension_names=("feature", "rank", *array.axes) if array.axes else None,
        attributes={"meaning": array.meaning} if array.meaning else None,
    )
    return _bytes(store)


def _group() -> bytes:
    group = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
    return json.dumps(group, indent=2).encode()


def _open(objects: Mapping[str, bytes]) -> zarr.Array[Any]:
    return zarr.open_array(_store(objects), mode="r", zarr_format=3)


def _store(objects: Mapping[str, bytes]) -> MemoryStore:
    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(data) for key, data in objects.items()})


def _bytes(store: MemoryStore) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def _key(shard: int, dimensions: int) -> str:
    return "/".join(["c", str(shard), *["0"] * (dimensions - 1)])


def _is_safe(part: str) -> bool:
    return part not in ("", ".", "..", METADATA) and not part.startswith("__")
