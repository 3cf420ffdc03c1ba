"""Files anywhere fsspec reaches: what a pattern means, listing, whole and range reads.

Knows nothing of images but the endings of their names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from zfscale.errors import UsageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm"),
    *(".svg", ".psd", ".ico"),
)
"""Names taken for images. Whether the bytes are one that can be decoded shows later."""

RECORD_BYTES = 1 << 20
"""A .cls or .json beside an image that is longer than this is not read."""

LISTING_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its URI (an absolute path on the local disk) and its size in bytes."""

    uri: str
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a pattern led to. `uri` is the folder ("folder"), the file ("file") or the pattern
    ("glob") that `files` came from.
    """

    kind: str
    uri: str
    files: tuple[Entry, ...]

    def select(self, suffixes: tuple[str, ...]) -> Place:
        """The same place with only the files whose names end so."""
        chosen = tuple(entry for entry in self.files if entry.uri.lower().endswith(suffixes))
        return replace(self, files=chosen)


def locate(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it. Raises UsageError for an unknown protocol."""
    try:
        return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.core.url_to_fs(uri))
    except (ValueError, ImportError) as error:
        raise UsageError(f"{uri}: cannot be reached: {error}") from error


def canonical(uri: str) -> str:
    """One spelling for one place: the absolute path on the local disk, else the full URL."""
    fs, path = locate(uri)
    if isinstance(fs, LocalFileSystem):
        return f"/{path.lstrip('/')}" if path.startswith("//") else path  # seen from the root
    return str(fs.unstrip_protocol(path))


def name(uri: str) -> str:
    """The last part of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """The folder of a URI."""
    return uri.rstrip("/").rpartition("/")[0]


def open_file(uri: str) -> BinaryIO:
    """Open for reading, seekable. Raises UsageError where a web server has no range requests."""
    fs, path = locate(uri)
    if _is_web(path) and len(fs.cat_file(path, start=0, end=1)) > 1:
        raise UsageError(
            f"{uri}: this web server does not answer range requests; download the files first"
        )
    return cast(BinaryIO, fs.open(path, "rb"))


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on, or fewer where the file ends before."""
    fs, path = locate(uri)
    return cast(bytes, fs.cat_file(path, start=offset, end=offset + length))


def read_whole(uri: str) -> bytes:
    """All bytes of a file."""
    fs, path = locate(uri)
    return cast(bytes, fs.cat_file(path))


def size(uri: str) -> int:
    """Bytes in a file."""
    fs, path = locate(uri)
    return int(fs.size(path) or 0)


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    fs, path = locate(uri)
    return bool(fs.exists(path))


def expand(pattern: str) -> list[Place]:
    """The places that a file, folder, glob or URL names; empty where there is nothing.

    A name that exists is itself, even with a `*` or `[` in it. Raises UsageError where a folder
    cannot be listed.
    """
    fs, path = locate(pattern)
    try:
        if fs.isdir(path):
            return [Place("folder", canonical(pattern), tuple(walk(pattern)))]
        if fs.exists(path):
            return [Place("file", canonical(pattern), (Entry(canonical(pattern), fs.size(path)),))]
        if not _is_glob(path):
            return []
        matches = fs.glob(path, detail=True)
        folders = [
            _full(fs, match)
            for match, info in matches.items()
            if info["type"] != "file" and fs.isdir(match)
        ]
        places = [Place("folder", folder, tuple(walk(folder))) for folder in folders]
    except PermissionError as error:
        raise UsageError(f"images: {pattern}: cannot be listed: {error}") from error
    loose = _loose(fs, matches)
    return [*places, Place("glob", canonical(pattern), loose)] if loose else places


def matching(pattern: str) -> tuple[Entry, ...]:
    """The files (not the folders) that a glob matches, sorted by URI."""
    fs, path = locate(pattern)
    return _loose(fs, fs.glob(path, detail=True))


def _loose(
    fs: fsspec.AbstractFileSystem, matches: Mapping[str, Mapping[str, Any]]
) -> tuple[Entry, ...]:
    found = [
        Entry(_full(fs, match), _size(fs, match, info))
        for match, info in matches.items()
        if not _hidden(match) and (info["type"] == "file" or not fs.isdir(match))
    ]
    return tuple(sorted(found, key=lambda entry: entry.uri))


def walk(folder: str, recursive: bool = True) -> list[Entry]:
    """The files in a folder and those below it, sorted by URI; none whose name begins with a dot.

    Symbolic links are followed on a local disk, but not in circles.
    """
    fs, path = locate(folder)
    found: Iterable[Entry]
    if isinstance(fs, LocalFileSystem):
        found = _walk_local(path, recursive)
    else:
        listed = fs.find(path, maxdepth=None if recursive else 1, detail=True)
        found = (
            Entry(_full(fs, child), _size(fs, child, info))
            for child, info in listed.items()
            if not _hidden(child)
        )
    return sorted(found, key=lambda entry: entry.uri)


def _walk_local(root: str, recursive: bool) -> Iterator[Entry]:
    """As `find` of fsspec, but several times faster, and through symbolic links."""
    pending: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    while pending:
        folder, followed = pending.pop()
        with os.scandir(folder) as children:
            for child in children:
                if child.name.startswith("."):
                    continue
                if child.is_dir():
                    if recursive and child.is_symlink():
                        target = os.path.realpath(child.path)
                        if target not in followed and not _encloses(target, folder):
                            pending.append((child.path, followed | {target}))
                    elif recursive:
                        pending.append((child.path, followed))
                elif child.is_file():
                    yield Entry(child.path, child.stat().st_size)
                elif child.is_symlink():
                    yield Entry(child.path, 0)  # It leads nowhere; reading it will say so.


def _encloses(target: str, folder: str) -> bool:
    """Whether `folder` lies in `target`, a real path: a link to it would go round in a circle."""
    return f"{os.path.realpath(folder)}/".startswith(f"{target.rstrip('/')}/")


def _hidden(path: str) -> bool:
    return name(path).startswith(".")


def _full(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _size(fs: fsspec.AbstractFileSystem, path: str, info: Mapping[str, Any]) -> int:
    """The size that a listing gives, or, where it gives none, as on the web, the file itself."""
    size = info["size"]
    return int(fs.size(path) or 0 if size is None else size)


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _is_glob(path: str) -> bool:
    # In a web address `?` begins the query.
    return any(character in path for character in ("*[" if _is_web(path) else "*?["))


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of every item, in order, a few at a time: what waits for storage overlaps."""
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(function, items))
