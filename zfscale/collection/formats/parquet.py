"""Parquet as Hugging Face datasets write it: an image column, a label column, one image a row.

The image is a struct of `bytes` and `path`, or plain binary. Which columns these are, and how
the classes are called, stands in the schema metadata; without it the names and types say.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zfscale.collection import classes
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import Entry, Place

SUFFIXES = (".parquet", ".pq")

ROWS = 32
"""Rows held at a time while a row group streams."""

IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo", "bytes", "data")
LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "target")


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str | None
    label: str | None


def shards(places: Sequence[Place]) -> list[Shard]:
    """One shard per file."""
    _row_group.cache_clear()
    return files.in_threads(_shard, [entry for place in places for entry in place.files])


def _shard(entry: Entry) -> Shard:
    images = 1  # Where the file is damaged one sample stands for it: unreadable.
    with _damage_tolerated(), _open(entry.uri) as file:
        images = file.metadata.num_rows
    return Shard("parquet", entry.uri, images, entry.size)


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    with files.open_file(uri) as handle, pq.ParquetFile(handle) as file:
        yield file


@contextmanager
def _damage_tolerated() -> Iterator[None]:
    """Ends the block quietly if the file is at fault, and not the way to it.

    pyarrow reports damage as OSError without an error number; a network or a disk gives one.
    Damaged names of columns are no Unicode.
    """
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, FileNotFoundError, PermissionError):
        return
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise


def read(shard: Shard, start: int, stop: int, skip: Collection[int]) -> Iterator[Sample]:
    """Rows `start` to `stop`, less those in `skip`. A damaged row group yields no samples."""
    with _damage_tolerated(), _open(shard.uri) as file:
        columns = _columns(file.schema_arrow)
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                for sample in _group(file, shard.uri, group, first, columns):
                    if sample.index >= stop:
                        return
                    if sample.index >= start and sample.index not in skip:
                        yield sample
            first += rows


def _group(
    file: pq.ParquetFile, uri: str, group: int, first: int, columns: _Columns
) -> Iterator[Sample]:
    """All samples of a row group, whose first row has the index `first`."""
    names = [name for name in (columns.image, columns.label) if name is not None]
    if not names:
        for row in range(file.metadata.row_group(group).num_rows):
            yield _sample(uri, group, row, first + row, None, None)
        return
    row = 0
    with _damage_tolerated():
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=names):
            for place in range(batch.num_rows):
                image = batch[columns.image][place] if columns.image else None
                label = batch[columns.label][place].as_py() if columns.label else None
                yield _sample(uri, group, row, first + row, image, label)
                row += 1


def _sample(
    uri: str, group: int, row: int, index: int, image: pa.Scalar | None, label: Any
) -> Sample:
    data = _bytes(image)
    return Sample(
        index,
        _path(image) or f"{files.name(uri)}#{index}",
        classes.known(label),
        ImageRef(uri, row_group=group, row=row),
        data,
        Reason.NO_IMAGE if data is None else None,
    )


def _bytes(image: pa.Scalar | None) -> bytes | None:
    if isinstance(image, pa.StructScalar):
        image = image["bytes"] if image.is_valid else None
    if not isinstance(image, pa.BinaryScalar | pa.LargeBinaryScalar):
        return None
    data: bytes | None = image.as_py()
    return data


def _path(image: pa.Scalar | None) -> str:
    """The path beside the bytes, or nothing. Damaged text is no reason to lose the image."""
    if not isinstance(image, pa.StructScalar) or not image.is_valid or "path" not in image:
        return ""
    path = image["path"]
    is_text = isinstance(path, pa.StringScalar | pa.LargeStringScalar) and path.is_valid
    return path.as_buffer().to_pybytes().decode(errors="backslashreplace") if is_text else ""


def fetch(uri: str, group: int, row: int) -> bytes | None:
    """The image of one row again, or None where there is none."""
    images = _row_group(uri, group)
    return _bytes(images[row]) if images is not None and row < len(images) else None


@functools.lru_cache(maxsize=2)
def _row_group(uri: str, group: int) -> pa.ChunkedArray | None:
    """The images of a row group. Images fetched one after the other tend to share it: cached."""
    with _open(uri) as file:
        image = _columns(file.schema_arrow).image
        if image is None or group >= file.metadata.num_row_groups:
            return None
        return file.read_row_group(group, columns=[image])[image]


def records(uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]:
    """The column `parts` of the wanted rows, where there is one, written as a record."""
    with _damage_tolerated(), _open(uri) as file:
        if "parts" not in file.schema_arrow.names:
            return
        for group in sorted({ref.row_group for ref in refs if ref.row_group is not None}):
            column = file.read_row_group(group, columns=["parts"])["parts"]
            for ref in refs:
                if ref.row_group == group and ref.row is not None:
                    parts = column[ref.row].as_py()
                    if parts is not None:
                        yield ref, json.dumps({"parts": parts}, default=str).encode()


def class_names(shards: Sequence[Shard]) -> list[str] | None:
    """The names of the ClassLabel feature of the first file that can be read."""
    for shard in shards:
        with _damage_tolerated(), _open(shard.uri) as file:
            schema = file.schema_arrow
            feature = _features(schema).get(_columns(schema).label or "")
            names = feature.get("names") if isinstance(feature, dict) else None
            return [str(name) for name in names] if isinstance(names, list) and names else None
    return None


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's description of the columns; empty where there is none."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _columns(schema: pa.Schema) -> _Columns:
    """The columns of image and label: by their feature, else by name, an image else by type."""
    features = _features(schema)
    binary = [field.name for field in schema if _holds_bytes(field.type)]
    integer = [field.name for field in schema if pa.types.is_integer(field.type)]
    return _Columns(
        image=_pick(binary, features, "Image", IMAGE_NAMES) or next(iter(binary), None),
        label=_pick(integer, features, "ClassLabel", LABEL_NAMES),
    )


def _pick(
    columns: list[str], features: dict[str, Any], kind: str, names: tuple[str, ...]
) -> str | None:
    described = [
        column
        for column in columns
        if isinstance(features.get(column), dict) and features[column].get("_type") == kind
    ]
    named = [name for name in names if name in columns]
    return next(iter(described + named), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(child.name == "bytes" and _holds_bytes(child.type) for child in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
