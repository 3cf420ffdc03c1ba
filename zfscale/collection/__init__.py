"""Where images come from: find shards, index each once, read some rows of an index, fetch again.

`find` only lists: a job does it at every start. `index` opens a shard and names every sample in
it; it is done once, on a worker, and its rows are what `read` and `fetch` go by. What a format is,
and how another one is added, stands in `formats`. Encoded bytes only: pixels are the business of
`decode`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.collection import classes, formats
from zfscale.collection.formats import LOOSE, Warn
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Columns, ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import Place

PEEKS = 32
"""Folders that are listed at most to tell class folders from folders of containers."""

PEEK_NAMES = 1000
"""Names that are looked at in each of them, on a local disk."""

_TEXTS = ("key", "uri", "reason")
_NUMBERS = ("label", "offset", "length", "row_group", "row")
INDEX_COLUMNS = ("position", "key", "label", "uri", *_NUMBERS[1:], "reason")
"""The columns of an index."""


def find(
    images: Sequence[str],
    format: str | None = None,  # noqa: A002  (the key in the job file)
) -> list[Shard]:
    """All shards at the given places, sorted by URI. Opens no container; lists a class folder
    only on an object store, or where folders are in it.

    A place is a file, a folder, a glob or a URL of any of these. The order and the repetition of
    places make no difference, and no file is in two shards. Raises UsageError for a place where
    no images are; that a class folder is empty shows only in its index.
    """
    by_format: dict[str, list[Place]] = {}
    for pattern in dict.fromkeys(images):
        found = False
        for place in files.expand(pattern):
            for name, part in _split(place, format).items():
                by_format.setdefault(name, []).append(part)
                found = True
        if not found:
            raise UsageError(_nothing_at(pattern, format))
    unique: dict[str, Shard] = {}
    for name, places in sorted(by_format.items()):
        for shard in formats.get(name).shards(places):
            _check_name(shard.uri)
            unique[shard.uri] = shard
    return [unique[uri] for uri in sorted(unique)]


def _check_name(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"images: {uri!a}: this name is not Unicode; rename it") from error


def _split(place: Place, kind: str | None) -> dict[str, Place]:
    """The files of a place by format. Loose images beside containers are taken for previews."""
    if place.kind == "folder":
        return _split_folder(place, kind)
    if kind is not None:
        is_glob = place.kind == "glob" and kind == LOOSE
        chosen = place.select(formats.get(kind).SUFFIXES) if is_glob else place
        return {kind: chosen} if chosen.files else {}
    parts = {name: place.select(formats.get(name).SUFFIXES) for name in formats.names()}
    parts = {name: part for name, part in parts.items() if part.files}
    if len(parts) > 1:
        parts.pop(LOOSE, None)
    return parts


def _split_folder(place: Place, kind: str | None) -> dict[str, Place]:
    """As `_split` for a folder. It is listed as a whole only where containers are in it."""
    containers = set(formats.names()) - {LOOSE} if kind is None else {kind} - {LOOSE}
    if kind is None or kind == LOOSE:
        seen, complete = _peek(place.uri, containers or {LOOSE})
        if not seen & containers:
            return {LOOSE: place} if LOOSE in seen or not complete else {}
    parts = {}
    for name in containers:
        listed = files.walk(place.uri, formats.get(name).SUFFIXES)
        if listed:
            parts[name] = replace(place, files=tuple(listed))
    return parts


def _peek(folder: str, wanted: set[str]) -> tuple[set[str], bool]:
    """The formats that names in a folder and in a few of those below it say, nearest first; and
    whether nothing was left out. Ends where one of the `wanted` is seen.
    """
    level = files.look(folder)
    seen = _formats_of(level.files)
    pending = list(level.folders)
    complete, left = True, PEEKS
    while pending and left and not seen & wanted:
        nearest, pending = pending[:left], pending[left:]
        left -= len(nearest)
        for level in files.in_threads(lambda inner: files.look(inner, PEEK_NAMES), nearest):
            seen |= _formats_of(level.files)
            pending.extend(level.folders)
            complete &= len(level.files) + len(level.folders) < PEEK_NAMES
    return seen, complete and not pending


def _formats_of(uris: Iterable[str]) -> set[str]:
    names = [uri.lower() for uri in uris]
    suffixes = {name: formats.get(name).SUFFIXES for name in formats.names()}
    return {
        kind for kind, endings in suffixes.items() if any(name.endswith(endings) for name in names)
    }


def _nothing_at(pattern: str, kind: str | None) -> str:
    names = [kind] if kind is not None else formats.names()
    known = "; ".join(f"{name}: {' '.join(formats.get(name).SUFFIXES)}" for name in names)
    return (
        f"images: {pattern!r} matches no images (searched {files.canonical(pattern)}). "
        f"Give a folder, a file or a glob of these kinds: {known}; or name the kind with `format`"
    )


def check_format(name: str) -> str:
    """The name of a format itself. Raises UsageError, which lists what there is."""
    formats.get(name)
    return name


def number_class_folders(shards: Sequence[Shard], counts: Sequence[int]) -> list[Shard]:
    """The same shards, each class folder with the label of its class; others as they are.

    `counts` has the number of samples of each shard, the rows of its index. A file of class names
    beside the folders gives the labels where it knows them all, else it is the place among their
    sorted names. A folder without a sample takes no number.
    """
    filled = {
        shard.uri
        for shard, count in zip(shards, counts, strict=True)
        if shard.class_folder and count > 0
    }
    numbers = classes.numbers(sorted(filled))
    return [
        replace(shard, label=numbers[files.name(shard.uri)]) if shard.uri in filled else shard
        for shard in shards
    ]


def index(shard: Shard, warn: Warn = warnings.warn) -> Columns:
    """Every sample of a shard, in order: one row each, the unreadable ones too.

    Columns: `position` in the shard (int64), `key`, `label`, where the image lies (`uri` with
    `offset` and `length` in bytes, or with `row_group` and `row`), and the `reason` why it cannot
    be used, as far as that shows without decoding. Texts are object arrays with None for null,
    numbers but the position masked arrays. The images of a class folder have no label here, for
    this depends on the other folders: that of the shard is theirs.

    `warn` is called with a sentence where an index file beside a tar is not used.
    """
    try:
        samples = [
            replace(sample, reason=Reason.EMPTY)
            if sample.ref.length == 0 and sample.reason is None
            else sample
            for sample in formats.get(shard.format).index(shard, warn)
        ]
    except (FileNotFoundError, PermissionError):
        samples = [_stands_for(shard, Reason.UNREADABLE)]
    except files.NotAFile:
        samples = [_stands_for(shard, Reason.NOT_A_FILE)]
    return _columns(samples)


def _stands_for(shard: Shard, reason: Reason) -> Sample:
    """The one sample of a shard that cannot be opened."""
    return Sample(0, f"{files.name(shard.uri)}#0", None, ImageRef(shard.uri), reason=reason)


def _columns(samples: Sequence[Sample]) -> Columns:
    rows: dict[str, list[Any]] = {
        "key": [sample.key for sample in samples],
        "label": [sample.label for sample in samples],
        "reason": [None if sample.reason is None else sample.reason.value for sample in samples],
    }
    for field in fields(ImageRef):
        rows[field.name] = [getattr(sample.ref, field.name) for sample in samples]
    columns: dict[str, NDArray[Any]] = {
        "position": np.array([sample.index for sample in samples], np.int64)
    }
    for name in INDEX_COLUMNS[1:]:
        values = rows[name]
        if name in _TEXTS:
            columns[name] = np.array(values, dtype=object)
        else:
            missing = [value is None for value in values]
            numbers = np.array([value or 0 for value in values], np.int64)
            columns[name] = np.ma.masked_array(numbers, missing)
    return columns


def _samples(shard: Shard, rows: Columns) -> list[Sample]:
    """Rows of an index as samples, with the label of the shard where it is a class folder."""
    names = ("position", "key", "label", "reason", *(field.name for field in fields(ImageRef)))
    values = (np.ma.asarray(rows[name]).tolist() for name in names)
    return [
        Sample(
            position,
            key,
            shard.label if shard.class_folder else label,
            ImageRef(*ref),
            reason=None if reason is None else Reason(reason),
        )
        for position, key, label, reason, *ref in zip(*values, strict=True)
    ]


def read(shard: Shard, rows: Columns) -> Iterator[Sample]:
    """The samples of some rows of the index of a shard, in their order, with their data.

    Exactly as many as there are rows, whatever became of the file since it was indexed. On an
    object store it is one pass over the bytes from the first row to the last. Errors of a network
    or a disk are raised, for they may pass: a task is tried again, an image is not.
    """
    samples = _samples(shard, rows)
    readable = [sample for sample in samples if sample.reason is None]
    found = _found(shard, readable)
    sample = next(found, None)
    for expected in samples:
        if expected.reason is not None:
            yield expected
        elif sample is not None and sample.index == expected.index:
            if sample.data == b"":
                sample = replace(sample, data=None, reason=Reason.EMPTY)
            yield sample
            sample = next(found, None)
        else:
            yield replace(expected, reason=Reason.UNREADABLE)


def _found(shard: Shard, samples: Sequence[Sample]) -> Iterator[Sample]:
    """What a format gives of some samples; it ends where the file cannot be opened."""
    if not samples:
        return
    try:
        yield from formats.get(shard.format).read(shard, samples)
    except (FileNotFoundError, PermissionError, files.NotAFile):
        return  # The rest follows as unreadable.


def fetch(
    ref: ImageRef,
    format: str | None = None,  # noqa: A002  (the key in the job file)
) -> bytes:
    """The encoded bytes of one image again, by one range read or as its format reads one image.

    Raises OSError where the file is gone and IntegrityError where it has changed.
    """
    kind = formats.get(format or formats.claiming(ref.uri) or LOOSE)
    try:
        data: bytes | None = getattr(kind, "fetch", _range)(ref)
    except files.NotAFile as error:
        raise IntegrityError(f"{error}; was it changed after the scan?") from error
    if data is None:
        raise IntegrityError(f"{ref}: no image there; was the file changed after the scan?")
    return data


def _range(ref: ImageRef) -> bytes | None:
    if ref.offset is None or ref.length is None:
        return None
    data = files.read_range(ref.uri, ref.offset, ref.length)
    return data if len(data) == ref.length else None


def records(
    refs: Sequence[ImageRef],
    format: str | None = None,  # noqa: A002  (the key in the job file)
) -> Iterator[tuple[ImageRef, bytes]]:
    """The JSON records of those images that have one, file by file; no image is read.

    What is written in a record is not looked at. One that is longer than `RECORD_BYTES` is given
    as no bytes.
    """
    by_file: dict[str, list[ImageRef]] = {}
    for ref in refs:
        by_file.setdefault(ref.uri, []).append(ref)

    def read_file(uri: str) -> list[tuple[ImageRef, bytes]]:
        kind = format or formats.claiming(uri) or LOOSE
        try:
            return list(formats.get(kind).records(uri, by_file[uri]))
        except (FileNotFoundError, PermissionError, files.NotAFile):
            return []  # Reading the images will say so.

    for found in files.in_threads(read_file, list(by_file)):
        yield from found


def class_names(shards: Sequence[Shard]) -> list[str] | None:
    """Names by label: from classes.json or classes.txt beside the shards, else from the format.

    The names of class folders are those of the shards that `number_class_folders` has numbered.
    """
    if not shards:
        return None
    beside = classes.beside(shards[0].uri)
    if beside is not None:
        return classes.names(beside)
    kind = shards[0].format
    return formats.get(kind).class_names([shard for shard in shards if shard.format == kind])
