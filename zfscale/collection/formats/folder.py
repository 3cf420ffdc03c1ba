"""Images as single files: a folder of class folders, a flat folder, or a glob of files.

A class folder is a shard of one class, with all folders below it. A flat folder is a shard of the
images straight in it, their labels in a file; so is a glob, without labels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from zfscale.collection import classes
from zfscale.collection.formats import Warn
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


_Home = tuple[_Kind, str]
"""A shard to be: its kind and its URI."""


def shards(places: Sequence[Place]) -> list[Shard]:
    """Shards per class folder, flat folder, glob and single file; no file is in two of them."""
    homes: dict[_Home, Shard] = {}
    for place in places:
        if place.kind == "folder":
            level = files.look(place.uri)
            flat = [uri for uri in level.files if _is_image(uri)]
            if flat:
                homes[_Kind.FLAT, place.uri] = _flat(place.uri, level.files, len(flat))
            for shard in files.in_threads(_class_folder, level.folders):
                homes[_Kind.CLASS, shard.uri] = shard
        elif place.kind == "glob":
            version = files.fingerprint(place.files)
            homes[_Kind.GLOB, place.uri] = Shard("folder", place.uri, 0, version)
        else:
            homes |= {(_Kind.FILE, entry.uri): _file(entry) for entry in place.files}
    return _without_overlap(homes)


def _is_image(uri: str) -> bool:
    return uri.lower().endswith(SUFFIXES)


def _file(entry: Entry) -> Shard:
    return Shard("folder", entry.uri, entry.size, entry.version)


def _class_folder(uri: str) -> Shard:
    version = _version(uri, recursive=not files.has_no_folders(uri))
    return Shard("folder", uri, 0, version, class_folder=True)


def _version(folder: str, recursive: bool) -> str | None:
    """That of a local folder tells what is straight in it; for more, its images are listed."""
    if files.local_path(folder) is not None and not recursive:
        return files.version(folder)
    return files.fingerprint(files.walk(folder, SUFFIXES, recursive))


def _flat(uri: str, listed: Collection[str], images: int) -> Shard:
    """A flat folder with its label file: labels.txt in it, or FOLDER.txt beside it."""
    version = _version(uri, recursive=False)
    labels = f"{uri}/labels.txt"
    if labels not in listed:
        labels = f"{uri}.txt"
        if not files.exists(labels):
            return Shard("folder", uri, 0, version)
    parsed = _labels(labels)
    if parsed.by_name is None and len(parsed.in_order) != images:
        raise UsageError(
            f"{labels}: {len(parsed.in_order)} labels for the {images} images of {uri}; "
            "write one a line in the sorted order of file names, or `name label` lines"
        )
    # The labels are part of the index: another label is another index.
    version = f"{version} {files.version(labels)}"
    return Shard("folder", uri, 0, version, labels=labels)


def _without_overlap(homes: dict[_Home, Shard]) -> list[Shard]:
    """The shards less the files that another one holds, whatever the order of the places.

    Only those that may share a file are listed for it.
    """
    doubtful = _related(homes)
    kept = [shard for home, shard in homes.items() if home not in doubtful]
    taken: set[str] = set()
    for home in sorted(doubtful):  # A folder comes before those in it.
        entries = _entries(homes[home])
        left = [entry for entry in entries if entry.uri not in taken]
        taken.update(entry.uri for entry in entries)
        if len(left) == len(entries):
            kept.append(homes[home])
        else:  # A shard is indexed by its name alone: the rest of one has none.
            kept += [_file(entry) for entry in left]
    return kept


def _related(homes: Collection[_Home]) -> set[_Home]:
    """Those that lie in one another, or may do so, by their names: what pairs with what."""
    folders = {home for home in homes if home[0] in (_Kind.CLASS, _Kind.FLAT)}
    related: set[_Home] = set()
    globs = [home for home in homes if home[0] is _Kind.GLOB]
    for home in homes:
        kind, uri = home
        if kind is not _Kind.GLOB:
            # A class folder holds all below it, a flat one only what is straight in it.
            above = _above(uri)
            inside = {(_Kind.CLASS, folder) for folder in above}
            if kind is _Kind.FLAT:
                inside.add((_Kind.CLASS, uri))
            if kind is _Kind.FILE:
                inside.add((_Kind.FLAT, files.parent(uri)))
            inside &= folders
            related |= inside | ({home} if inside else set())
        for glob in globs:
            if glob != home and _may_meet(_fixed(glob[1]), _fixed(uri) if home in globs else uri):
                related |= {home, glob}
    return related


def _above(uri: str) -> list[str]:
    """The folders that a file or folder lies in, up to the root."""
    found = []
    while (folder := files.parent(uri)) not in ("", uri):
        found.append(folder)
        uri = folder
    return found


def _fixed(pattern: str) -> str:
    """The folder that everything lies in that a glob matches."""
    first = min((pattern.find(char) for char in "*?[" if char in pattern), default=len(pattern))
    return pattern[:first].rpartition("/")[0]


def _may_meet(one: str, other: str) -> bool:
    one, other = f"{one}/", f"{other}/"
    return one.startswith(other) or other.startswith(one)


def _entries(shard: Shard) -> list[Entry]:
    """The images of a shard in order."""
    if shard.class_folder:
        return files.walk(shard.uri, SUFFIXES)
    for place in files.expand(shard.uri):
        if place.uri == shard.uri:
            if place.kind == "folder":
                return files.walk(shard.uri, SUFFIXES, recursive=False)
            one = place.kind == "file"  # whatever its name: it was asked for
            return [entry for entry in place.files if one or _is_image(entry.uri)]
    raise FileNotFoundError(shard.uri)


def index(shard: Shard, warn: Warn) -> Iterator[Sample]:  # noqa: ARG001  (nothing to warn of)
    """One sample a file. A name that no table could hold makes it unusable."""
    labels = _labels(shard.labels) if shard.labels is not None else None
    root = files.parent(shard.uri) if shard.class_folder else shard.uri
    for position, entry in enumerate(_entries(shard)):
        uri, reason = entry.uri, None
        key = uri[len(root) + 1 :] if uri.startswith(f"{root}/") else files.name(uri)
        label = labels.of(key, position) if labels is not None else None
        ref = ImageRef(uri)
        if not entry.regular:
            reason = Reason.NOT_A_FILE
        elif entry.version is None and files.local_path(uri) is not None:
            reason = Reason.UNREADABLE  # a link that leads nowhere
        else:
            ref = ImageRef(uri, 0, entry.size)
        try:
            uri.encode()
        except UnicodeEncodeError:
            key, ref = ascii(key)[1:-1], ImageRef(ascii(uri)[1:-1])
            reason = Reason.UNSAFE_NAME
        yield Sample(position, key, label, ref, reason=reason)


def read(shard: Shard, samples: Sequence[Sample]) -> Iterator[Sample]:  # noqa: ARG001
    """File by file, each as it is now."""
    for sample in samples:
        uri = sample.ref.uri
        try:
            data = files.read_whole(uri)
        except files.NotAFile:
            yield replace(sample, reason=Reason.NOT_A_FILE)
        except (FileNotFoundError, PermissionError):
            yield replace(sample, reason=Reason.UNREADABLE)
        else:
            yield replace(sample, ref=ImageRef(uri, 0, len(data)), data=data)


def class_names(shards: Sequence[Shard]) -> list[str] | None:
    """The names of the class folders by label."""
    names = {shard.label: files.name(shard.uri) for shard in shards if shard.label is not None}
    return [names[label] for label in sorted(names)] or None


def records(uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]:
    """The file of the same name with the ending .json, where there is one."""
    text = files.read_range(f"{uri.rpartition('.')[0]}.json", 0, RECORD_BYTES + 1)
    for ref in refs:
        yield ref, text if len(text) <= RECORD_BYTES else b""


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
