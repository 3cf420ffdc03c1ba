"""Images as single files: a folder of class folders, a flat folder, or a glob of files.

A class folder is a shard with a label, read with all folders below it. A flat folder is a shard
of the images straight in it, their labels in a file; so is a glob, without labels. A shard is
listed again where it is read, and sorted: its files must not change during a run.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from zfscale.collection import classes
from zfscale.errors import UsageError
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import IMAGE_SUFFIXES, RECORD_BYTES, Entry, Place

SUFFIXES = IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class _Labels:
    """A label file: by file name, or one a line in the sorted order of names."""

    by_name: dict[str, int | None] | None
    in_order: list[int | None]

    def of(self, name: str, index: int) -> int | None:
        if self.by_name is not None:
            return self.by_name.get(name)
        return self.in_order[index] if index < len(self.in_order) else None


class _Kind(IntEnum):
    """What a shard is made of. Of two that hold a file, the one of the smaller kind keeps it."""

    CLASS = 0
    FLAT = 1
    GLOB = 2
    FILE = 3


def shards(places: Sequence[Place]) -> list[Shard]:
    """Shards per class folder, flat folder, glob and single file; no file is in two of them."""
    _list.cache_clear()
    _labels.cache_clear()
    groups = _without_overlap(places)
    numbers = _numbers([uri for kind, uri in groups if kind is _Kind.CLASS])
    found: list[Shard] = []
    for (kind, uri), entries in groups.items():
        if kind is _Kind.CLASS:
            found.append(_shard(uri, entries, label=numbers[files.name(uri)]))
        elif kind is _Kind.FLAT:
            found.append(_flat(uri, entries))
        else:
            found.append(_shard(uri, entries))
    return found


def _without_overlap(places: Sequence[Place]) -> dict[tuple[_Kind, str], list[Entry]]:
    """The files of each shard to be, by its kind and URI, whatever the order of the places."""
    groups: dict[tuple[_Kind, str], dict[str, Entry]] = {}
    for place in places:
        for entry in place.files:
            groups.setdefault(_home(place, entry), {})[entry.uri] = entry
    taken: set[str] = set()
    left: dict[tuple[_Kind, str], list[Entry]] = {}
    for home in sorted(groups):  # A folder comes before those in it.
        entries = [entry for uri, entry in groups[home].items() if uri not in taken]
        taken.update(groups[home])
        if len(entries) == len(groups[home]):
            left[home] = entries
        else:  # A shard is listed again by its name alone: the rest of one has none.
            left |= {(_Kind.FILE, entry.uri): [entry] for entry in entries}
    return left


def _home(place: Place, entry: Entry) -> tuple[_Kind, str]:
    """The shard that a file of a place belongs to."""
    if place.kind != "folder":
        return _Kind[place.kind.upper()], place.uri
    inner, below, _ = entry.uri[len(place.uri) :].lstrip("/").partition("/")
    return (_Kind.CLASS, f"{place.uri}/{inner}") if below else (_Kind.FLAT, place.uri)


def _shard(uri: str, entries: Sequence[Entry], label: int | None = None) -> Shard:
    return Shard("folder", uri, len(entries), sum(entry.size for entry in entries), label)


def _flat(uri: str, entries: Sequence[Entry]) -> Shard:
    """A flat folder with its label file: labels.txt in it, or FOLDER.txt beside it."""
    candidates = (f"{uri}/labels.txt", f"{uri}.txt")
    labels = next((candidate for candidate in candidates if files.exists(candidate)), None)
    if labels is not None:
        parsed = _labels(labels)
        if parsed.by_name is None and len(parsed.in_order) != len(entries):
            raise UsageError(
                f"{labels}: {len(parsed.in_order)} labels for the {len(entries)} images of {uri}; "
                "write one a line in the sorted order of file names, or `name label` lines"
            )
    size = sum(entry.size for entry in entries)
    return Shard("folder", uri, len(entries), size, labels=labels)


def _numbers(class_folders: Collection[str]) -> dict[str, int]:
    """Label by folder name: what the file of class names beside the folders says where it knows
    them all, else the place in sorted order.
    """
    names = sorted({files.name(uri) for uri in class_folders})
    beside = classes.beside(next(iter(class_folders))) if class_folders else None
    if beside is not None:
        words = classes.labels_by_word(beside)
        if all(name in words for name in names):
            return {name: words[name] for name in names}
    return {name: number for number, name in enumerate(names)}


def class_names(shards: Sequence[Shard]) -> list[str] | None:
    """The names of the class folders by label."""
    names = {shard.label: files.name(shard.uri) for shard in shards if shard.label is not None}
    return [names[label] for label in sorted(names)] or None


def records(uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]:
    """The file of the same name with the ending .json, where there is one."""
    text = files.read_range(f"{uri.rpartition('.')[0]}.json", 0, RECORD_BYTES + 1)
    for ref in refs:
        yield ref, text if len(text) <= RECORD_BYTES else b""


def read(shard: Shard, start: int, stop: int, skip: Collection[int]) -> Iterator[Sample]:
    """Samples `start` to `stop`, less those in `skip`."""
    entries = _list(shard)
    labels = _labels(shard.labels) if shard.labels is not None else None
    root = shard.uri if shard.label is None else files.parent(shard.uri)
    for index in range(start, min(stop, len(entries))):
        if index in skip:
            continue
        uri = entries[index].uri
        inside = uri.startswith(f"{root}/")
        key = uri[len(root) + 1 :] if inside else files.name(uri)
        label = labels.of(key, index) if labels is not None else shard.label
        yield _sample(index, key, label, uri)


def _sample(index: int, key: str, label: int | None, uri: str) -> Sample:
    try:
        uri.encode()
    except UnicodeEncodeError:  # No table could hold this name.
        key, uri = ascii(key)[1:-1], ascii(uri)[1:-1]
        return Sample(index, key, label, ImageRef(uri), reason=Reason.UNSAFE_NAME)
    try:
        data = files.read_whole(uri)
    except (FileNotFoundError, PermissionError):
        return Sample(index, key, label, ImageRef(uri), reason=Reason.UNREADABLE)
    return Sample(index, key, label, ImageRef(uri, 0, len(data)), data)


@functools.lru_cache(maxsize=2)
def _list(shard: Shard) -> tuple[Entry, ...]:
    """The images of a shard in order, as `shards` counted them. Tasks follow each other: cached."""
    fs, path = files.locate(shard.uri)
    if fs.isdir(path):
        found = files.walk(shard.uri, recursive=shard.label is not None)
    elif fs.exists(path):
        found = [Entry(shard.uri, shard.size)]
    else:
        found = list(files.matching(shard.uri))
    return tuple(entry for entry in found if entry.uri.lower().endswith(SUFFIXES))


@functools.lru_cache(maxsize=2)
def _labels(uri: str) -> _Labels:
    """Read `name label` lines, or one label a line. Raises UsageError where it is neither."""
    try:
        lines = files.read_whole(uri).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{uri}: cannot read the labels: {error}") from error
    rows = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
    if all(len(row) == 1 for row in rows):
        return _Labels(None, [classes.label(row[0]) for row in rows])
    if all(len(row) == 2 for row in rows):
        return _Labels({name: classes.label(text) for name, text in rows}, [])
    raise UsageError(f"{uri}: expected `name label` on every line, or one label on every line")
