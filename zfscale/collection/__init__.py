"""Where images come from: find shards of images, read a range of one, fetch one image again.

One module of this package is one format. It holds

    SUFFIXES: tuple[str, ...]                            file names it claims, in lower case
    def shards(places: Sequence[Place]) -> list[Shard]   one per file or folder, samples counted
    def read(shard, start, stop, skip) -> Iterator[Sample]
    def class_names(shards: Sequence[Shard]) -> list[str] | None
    def records(uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]

and nothing else names it: adding a format is adding one file. Bad input inside a container is a
Sample with a reason, never an exception. Encoded bytes only: pixels are the business of `decode`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from zfscale.collection import classes
from zfscale.collection import formats as _formats
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import Place


class Format(Protocol):
    """The shape of a format module."""

    SUFFIXES: tuple[str, ...]

    def shards(self, places: Sequence[Place]) -> list[Shard]: ...

    def read(
        self, shard: Shard, start: int, stop: int, skip: Collection[int]
    ) -> Iterator[Sample]: ...

    def class_names(self, shards: Sequence[Shard]) -> list[str] | None: ...

    def records(self, uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]: ...


def formats() -> list[str]:
    """All formats there are."""
    return sorted(module.name for module in pkgutil.iter_modules(_formats.__path__))


@functools.cache
def _module(name: str) -> Format:
    if name not in formats():
        raise UsageError(f"format: {name!r} is unknown; there are {', '.join(formats())}")
    module: Any = importlib.import_module(f"{_formats.__name__}.{name}")
    return module  # type: ignore[no-any-return]


def find(
    images: Sequence[str],
    format: str | None = None,  # noqa: A002  (the key in the job file)
) -> list[Shard]:
    """All shards at the given places, with their samples counted, sorted by URI.

    A place is a file, a folder, a glob or a URL of any of these. The order and the repetition of
    places make no difference. Raises UsageError for a place where no images are.
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
        for shard in _module(name).shards(places):
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
    if kind is not None:
        claimed = place.select(_module(kind).SUFFIXES)
        chosen = claimed if place.kind == "folder" else place
        return {kind: chosen} if chosen.files else {}
    parts = {name: place.select(_module(name).SUFFIXES) for name in formats()}
    parts = {name: part for name, part in parts.items() if part.files}
    if len(parts) > 1:
        parts.pop("folder", None)
    return parts


def _nothing_at(pattern: str, kind: str | None) -> str:
    names = [kind] if kind is not None else formats()
    known = "; ".join(f"{name}: {' '.join(_module(name).SUFFIXES)}" for name in names)
    return (
        f"images: {pattern!r} matches no images (searched {files.canonical(pattern)}). "
        f"Give a folder, a file or a glob of these kinds: {known}; or name the kind with `format`"
    )


def read(shard: Shard, start: int, stop: int, skip: Collection[int] = ()) -> Iterator[Sample]:
    """Samples `start` to `stop` of a shard in order, less the positions in `skip`.

    Exactly as many as asked for, whatever became of the file since it was counted. Errors of a
    network or a disk are raised, for they may pass: a task is tried again, an image is not.
    """
    wanted = (index for index in range(start, min(stop, shard.images)) if index not in skip)
    expected = next(wanted, None)
    try:
        for sample in _module(shard.format).read(shard, start, stop, frozenset(skip)):
            while expected is not None and expected < sample.index:
                yield _missing(shard, expected)
                expected = next(wanted, None)
            if sample.index == expected:
                if sample.data == b"":
                    sample = replace(sample, data=None, reason=Reason.EMPTY)  # noqa: PLW2901
                yield sample
                expected = next(wanted, None)
    except (FileNotFoundError, PermissionError):
        pass  # The rest follows as unreadable.
    while expected is not None:
        yield _missing(shard, expected)
        expected = next(wanted, None)


def _missing(shard: Shard, index: int) -> Sample:
    key = f"{files.name(shard.uri)}#{index}"
    return Sample(index, key, shard.label, ImageRef(shard.uri), reason=Reason.UNREADABLE)


def fetch(ref: ImageRef) -> bytes:
    """The encoded bytes of one image again, by one range read or one Parquet row group.

    Raises OSError where the file is gone and IntegrityError where it has changed.
    """
    if ref.row_group is not None and ref.row is not None:
        from zfscale.collection.formats import parquet

        data = parquet.fetch(ref.uri, ref.row_group, ref.row)
    elif ref.offset is not None and ref.length is not None:
        data = files.read_range(ref.uri, ref.offset, ref.length)
        data = data if len(data) == ref.length else None
    else:
        data = None
    if data is None:
        raise IntegrityError(f"{ref}: no image there; was the file changed after the scan?")
    return data


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
        try:
            return list(_module(format or _claims(uri)).records(uri, by_file[uri]))
        except (FileNotFoundError, PermissionError):
            return []  # Reading the images will say so.

    for found in files.in_threads(read_file, list(by_file)):
        yield from found


def _claims(uri: str) -> str:
    """The format that claims the name of a file."""
    return next(name for name in formats() if uri.lower().endswith(_module(name).SUFFIXES))


def class_names(shards: Sequence[Shard]) -> list[str] | None:
    """Names by label: from classes.json or classes.txt beside the shards, else from the format."""
    if not shards:
        return None
    beside = classes.beside(shards[0].uri)
    if beside is not None:
        return classes.names(beside)
    kind = shards[0].format
    return _module(kind).class_names([shard for shard in shards if shard.format == kind])
