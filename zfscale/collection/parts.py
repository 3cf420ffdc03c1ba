"""Where the parts of an image lie: from the image's own record, or from a file that a user brings.

A record is a JSON object beside the image (docs/images.md) with a list `parts`; what is wrong
with it is told, and the rest is used. A user's file is a table, and a mistake in it an error.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from zfscale import collection as sources
from zfscale.boxes import RANDOM_BOXES, PartBox
from zfscale.errors import UsageError
from zfscale.records import Image
from zfscale.storage import files

COLUMNS = ("key", "part", "x0", "y0", "x1", "y1")
FLAGS = ("discriminative", "decides")
"""Names of the optional flag, the older spelling last."""
NAME_LENGTH = 100
Boxes = dict[str, tuple[PartBox, ...]]
"""Image id to the boxes of its parts, each part once."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a user's file; `place` says where it stands, for messages."""

    place: str
    key: str
    box: PartBox


def of_records(images: Sequence[Image], kind: str | None = None) -> tuple[Boxes, list[str]]:
    """The boxes that images carry with them, and what is to be told of those left out.

    `kind` is the format of the collection, where the job says it. Reads no pixels.
    """
    by_ref = {image.ref: image for image in images}
    found: Boxes = {}
    wrong: list[str] = []
    for ref, text in sources.records(list(by_ref), kind):
        image = by_ref[ref]
        boxes: dict[str, PartBox] = {}
        for fields in _listed(text, image.key, wrong):
            try:
                box = _checked(_box(fields), image)
                if box.part in boxes:
                    raise ValueError(f"part {box.part!r} is there twice")
            except ValueError as error:
                wrong.append(f"{image.key}: {error}")
            else:
                boxes[box.part] = box
        if boxes:
            found[image.id] = tuple(boxes.values())
    return found, _told(wrong)


def _listed(text: bytes, key: str, wrong: list[str]) -> list[Any]:
    """What a record lists under `parts`; nothing where it has no such key."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        wrong.append(f"{key}: its record is no JSON, or too long")
        return []
    parts = record.get("parts", []) if isinstance(record, dict) else []
    if not isinstance(parts, list):
        wrong.append(f"{key}: parts: {parts!r:.40}, expected a list")
        return []
    return parts


def _told(wrong: Sequence[str]) -> list[str]:
    if not wrong:
        return []
    return [f"parts: {len(wrong)} boxes or records of images cannot be used, e.g. {wrong[0]}"]


def table(uri: str) -> list[Row]:
    """The rows of a user's Parquet or CSV file with the columns key, part, x0, y0, x1, y1.

    A column `discriminative` may be there, `decides` in older files; others are ignored.
    Raises UsageError naming file, row, column, value and what was expected.
    """
    rows = []
    for number, fields in _rows(uri):
        place = f"{uri}: row {number}"
        key = fields["key"]
        try:
            if not isinstance(key, str) or not key:
                raise ValueError(f"key: {key!r}, expected the key of an image, as text")
            rows.append(Row(place, key, _box(fields)))
        except ValueError as error:
            raise UsageError(f"parts: {place}: {error}") from error
    return rows


def assign(rows: Iterable[Row], images: Sequence[Image]) -> Boxes:
    """The boxes of each image that a user's file names by its key.

    Raises UsageError for a box outside of its image, for a part that an image has twice, and
    where several of the images have the key.
    """
    times = Counter(image.key for image in images)
    by_key = {image.key: image for image in images}
    found: dict[str, dict[str, PartBox]] = {}
    for row in rows:
        image = by_key.get(row.key)
        if image is None:
            continue  # Of an image that was not chosen.
        boxes = found.setdefault(image.id, {})
        try:
            if times[row.key] > 1:
                raise ValueError(f"key: {times[row.key]} of the images are called {row.key!r}")
            if row.box.part in boxes:
                raise ValueError(f"part: {row.key!r} has {row.box.part!r} twice, expected one box")
            boxes[row.box.part] = _checked(row.box, image)
        except ValueError as error:
            raise UsageError(f"parts: {row.place}: {error}") from error
    return {id_: tuple(boxes.values()) for id_, boxes in found.items()}


def _rows(uri: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a file with their numbers, which count from 1 and leave out the header."""
    try:
        data = files.read_whole(uri)
        if uri.lower().endswith((".parquet", ".pq")):
            with pq.ParquetFile(io.BytesIO(data)) as file:
                _check_columns(uri, file.schema_arrow.names)
                optional = [name for name in FLAGS if name in file.schema_arrow.names]
                yield from enumerate(file.read([*COLUMNS, *optional]).to_pylist(), 1)
        else:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
            _check_columns(uri, reader.fieldnames or ())
            yield from enumerate(reader, 1)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise UsageError(
            f"parts: {uri}: cannot be read as Parquet (.parquet, .pq) or CSV: {error}"
        ) from error


def _check_columns(uri: str, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UsageError(
            f"parts: {uri}: has no column {missing[0]}, expected {', '.join(COLUMNS)}; "
            f"it has {', '.join(map(repr, names)) or 'none'}"
        )


def _box(fields: Any) -> PartBox:
    """A box from its fields. Raises ValueError naming field, value and what was expected."""
    if not isinstance(fields, dict):
        raise ValueError(f"{fields!r:.40}, expected an object with {', '.join(COLUMNS[1:])}")
    part = fields.get("part")
    if not _is_name(part) or part == RANDOM_BOXES:
        raise ValueError(
            f"part: {part!r:.40}, expected a name of at most {NAME_LENGTH} characters, "
            f"other than {RANDOM_BOXES!r}"
        )
    x0, y0, x1, y1 = (_number(name, fields.get(name)) for name in COLUMNS[2:])
    for low, high, start, stop in (("x0", "x1", x0, x1), ("y0", "y1", y0, y1)):
        if start >= stop:
            raise ValueError(f"{high}: {stop:g}, expected more than {low}, which is {start:g}")
    return PartBox(part, x0, y0, x1, y1, _flag(fields))


def _is_name(part: Any) -> TypeGuard[str]:
    if not isinstance(part, str) or not 0 < len(part) <= NAME_LENGTH:
        return False
    return not any(0xD800 <= ord(character) < 0xE000 for character in part)  # no table holds them


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: {value!r:.40}, expected a number of pixels")
    return number


def _flag(fields: Mapping[str, Any]) -> bool:
    name = next((name for name in FLAGS if name in fields), FLAGS[0])
    word = str(fields.get(name)).strip().lower()
    if word not in {"true", "1", "false", "0", "none", ""}:
        raise ValueError(f"{name}: {fields[name]!r:.40}, expected true or false")
    return word in {"true", "1"}


def _checked(box: PartBox, image: Image) -> PartBox:
    """The same box. Raises ValueError where it lies outside of its image."""
    for low, start, stop, size in (
        ("x0", box.x0, box.x1, image.width),
        ("y0", box.y0, box.y1, image.height),
    ):
        if start >= size or stop <= 0:
            raise ValueError(
                f"{low}: {start:g} to {stop:g}, expected a box inside of the {image.width} x "
                f"{image.height} pixels of {image.key}"
            )
    return box
