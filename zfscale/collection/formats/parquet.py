"""Parquet as Hugging Face datasets write it: an image column, a label column, one image a row.

The image is a struct of `bytes` and `path`, or plain binary. Which columns these are, and how
the classes are called, stands in the schema metadata; without it the names and types say.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from zfscale.collection import classes
from zfscale.collection.formats import Warn
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import Entry, Place
from zfscale.storage.remote import CHUNK

SUFFIXES = (".parquet", ".pq")

ROWS = 32
"""Rows whose images are held at a time while a row group streams."""

DESCRIBED = 4096
"""Rows whose paths and labels are held at a time."""

IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "photo", "bytes", "data")
LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "target")


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str | None
    label: str | None


def shards(places: Sequence[Place]) -> list[Shard]:
    """One shard per file."""
    _row_group.cache_clear()
    return [_shard(entry) for place in places for entry in place.files]


def _shard(entry: Entry) -> Shard:
    return Shard("parquet", entry.uri, entry.size, entry.version)


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    # Pages are read where they lie: pyarrow asks for a chunk of a column at a time.
    with (
        files.open_file(uri, chunk=0) as handle,
        pq.ParquetFile(handle, buffer_size=CHUNK) as file,
    ):
        yield file


@contextmanager
def _damage_tolerated() -> Iterator[None]:
    """Ends the block quietly if the file is at fault, and not the way to it."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        return
    except Exception as error:
        if not _is_damage(error):
            raise


def _is_damage(error: Exception) -> bool:
    """Pyarrow reports damage as OSError without an error number; a network or a disk gives one.

    Damaged names of columns are no Unicode.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | UnicodeDecodeError)


def index(shard: Shard, warn: Warn) -> Iterator[Sample]:  # noqa: ARG001  (nothing to warn of)
    """All rows. Images are not read, but where the file does not say that all rows have one."""
    done, rows = 0, 1  # Where the file is damaged as a whole one sample stands for it.
    with _damage_tolerated(), _open(shard.uri) as file:
        rows = file.metadata.num_rows
        for _, sample in zip(range(rows), _rows(file, shard.uri), strict=False):
            yield sample
            done += 1
    for position in range(done, rows):
        yield _unreadable(shard.uri, position)


def _rows(file: pq.ParquetFile, uri: str) -> Iterator[Sample]:
    """The samples of all row groups without their data, the damaged ones too."""
    columns = _columns(file.schema_arrow)
    first = 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        for sample in _described(file, uri, group, first, columns):
            yield sample
            first += 1
        for position in range(first, end):
            yield _unreadable(uri, position)
        first = end


def _unreadable(uri: str, position: int) -> Sample:
    key = f"{files.name(uri)}#{position}"
    return Sample(position, key, None, ImageRef(uri), reason=Reason.UNREADABLE)


def _described(
    file: pq.ParquetFile, uri: str, group: int, first: int, columns: _Columns
) -> Iterator[Sample]:
    """The samples of a row group without their data; fewer where it is damaged."""
    absent = list(_without_image(file, group, columns.image))
    done = 0
    for size in (DESCRIBED, ROWS):  # where many at once are damaged, fewer may be whole
        row = 0
        for text, label in _descriptions(file, group, columns, size):
            if done <= row < len(absent):
                yield Sample(
                    first + row,
                    text or f"{files.name(uri)}#{first + row}",
                    classes.known(label),
                    ImageRef(uri, row_group=group, row=row),
                    reason=Reason.NO_IMAGE if absent[row] else None,
                )
                done += 1
            row += 1
        if row == len(absent):
            return


def _descriptions(
    file: pq.ParquetFile, group: int, columns: _Columns, size: int
) -> Iterator[tuple[str | None, Any]]:
    """Path and label of the rows of a row group, None for what is not there, up to its damage."""
    path = _leaf(file, columns.image, "path")
    names = [name for name in (path, columns.label) if name is not None]
    if not names:
        yield from [(None, None)] * file.metadata.row_group(group).num_rows
        return
    for batch in _batches(file, group, names, size):
        none = [None] * batch.num_rows
        texts = _texts(pc.struct_field(batch[columns.image], "path")) if path else none
        labels = batch[columns.label].to_pylist() if columns.label else none
        yield from zip(texts, labels, strict=True)


def _batches(
    file: pq.ParquetFile, group: int, names: list[str], size: int
) -> Iterator[pa.RecordBatch]:
    """Some columns of a row group, `size` rows at a time, up to where it is damaged."""
    with _damage_tolerated():
        yield from file.iter_batches(size, row_groups=[group], columns=names)


def _texts(column: pa.Array) -> list[str | None]:
    """Damaged text is no reason to lose the image."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [
            cell.as_buffer().to_pybytes().decode(errors="backslashreplace")
            if cell.is_valid
            else None
            for cell in column
        ]


def _leaf(file: pq.ParquetFile, column: str | None, field: str) -> str | None:
    """The name of a field of a struct of texts, or None."""
    if column is None:
        return None
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
        return None
    inner = kind.field(field).type
    return f"{column}.{field}" if _is_text(inner) else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _without_image(file: pq.ParquetFile, group: int, column: str | None) -> Iterator[bool]:
    """For each row of a row group, whether it has no image.

    The file counts its nulls. Where it has some, or does not count, the images have to be read.
    """
    rows = file.metadata.row_group(group).num_rows
    if column is None:
        yield from [True] * rows
    elif _nulls(file, group, column) == 0:
        yield from [False] * rows
    else:
        for batch in _batches(file, group, [column], ROWS):
            yield from (_bytes(cell) is None for cell in batch[column])


def _nulls(file: pq.ParquetFile, group: int, column: str) -> int | None:
    """How many rows have no bytes, if the file says so."""
    metadata = file.metadata.row_group(group)
    try:
        for place in range(metadata.num_columns):
            chunk = metadata.column(place)
            if chunk.path_in_schema in (column, f"{column}.bytes"):
                statistics = chunk.statistics
                if statistics is not None and statistics.has_null_count:
                    return int(statistics.null_count)
    except UnicodeDecodeError:  # a damaged name, which reading does not look at
        pass
    return None


def read(shard: Shard, samples: Sequence[Sample]) -> Iterator[Sample]:
    """Row group by row group. A damaged one gives no samples from where it is damaged."""
    with _damage_tolerated(), _open(shard.uri) as file:
        image = _columns(file.schema_arrow).image
        if image is None:
            return
        for group, wanted in groupby(samples, key=lambda sample: sample.ref.row_group):
            if group is not None and group < file.metadata.num_row_groups:
                yield from _images(file, group, image, {s.ref.row: s for s in wanted})


def _images(
    file: pq.ParquetFile, group: int, image: str, wanted: dict[int | None, Sample]
) -> Iterator[Sample]:
    first = 0
    for batch in _batches(file, group, [image], ROWS):
        for row, cell in enumerate(batch[image], first):
            sample = wanted.pop(row, None)
            if sample is not None:
                data = _bytes(cell)
                yield replace(sample, data=data, reason=Reason.NO_IMAGE if data is None else None)
        if not wanted:
            return
        first += batch.num_rows


def _bytes(image: pa.Scalar | None) -> bytes | None:
    if isinstance(image, pa.StructScalar):
        image = image["bytes"] if image.is_valid else None
    if not isinstance(image, pa.BinaryScalar | pa.LargeBinaryScalar):
        return None
    data: bytes | None = image.as_py()
    return data


def fetch(ref: ImageRef) -> bytes | None:
    """The image of one row again, or None where there is none, or no Parquet any more."""
    if ref.row_group is None or ref.row is None:
        return None
    try:
        images = _row_group(ref.uri, ref.row_group)
    except Exception as error:
        if not _is_damage(error):
            raise
        return None
    return _bytes(images[ref.row]) if images is not None and ref.row < len(images) else None


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
