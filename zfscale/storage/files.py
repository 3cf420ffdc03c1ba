"""Files anywhere fsspec reaches: what a pattern means, listing, whole and range reads.

Knows nothing of images but the endings of their names. Errors are those of `access.reaching`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from zfscale.errors import UsageError
from zfscale.storage.access import reaching
from zfscale.storage.remote import CHUNK, RemoteFile, fetch, size_now

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm"),
    *(".svg", ".psd", ".ico"),
)
"""Names taken for images. Whether the bytes are one that can be decoded shows later."""

RECORD_BYTES = 1 << 20
"""A .cls or .json beside an image that is longer than this is not read."""

LISTING_THREADS = 8
RANGE_THREADS = 32

MERGED_GAP = 64 << 10
"""Ranges of one file that lie closer together than this are read by one request."""

T = TypeVar("T")
R = TypeVar("R")


class NotAFile(OSError):
    """A named pipe, a socket or a device, which would be waited for if it were opened."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its URI (an absolute path on the local disk) and its size in bytes.

    `version` is text that changes when the file does: the time of its last change, or the etag
    of an object store; None where the storage does not say. `regular` is False for what can be
    listed but not be read: pipes, sockets, devices.
    """

    uri: str
    size: int
    version: str | None = None
    regular: bool = True


@dataclass(frozen=True, slots=True)
class Level:
    """What lies straight in a folder: the URIs of its files and of the folders in it, sorted."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """What a pattern led to. `uri` is the folder ("folder"), the file ("file") or the pattern
    ("glob") that `files` came from. A folder is not listed: `files` is empty.
    """

    kind: str
    uri: str
    files: tuple[Entry, ...] = ()

    def select(self, suffixes: tuple[str, ...]) -> Place:
        """The same place with only the files whose names end so."""
        chosen = tuple(entry for entry in self.files if entry.uri.lower().endswith(suffixes))
        return replace(self, files=chosen)


def locate(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it. Raises UsageError for an unknown protocol."""
    try:
        with reaching(uri):
            return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.core.url_to_fs(uri))
    except (ValueError, ImportError) as error:
        raise UsageError(f"{uri}: cannot be reached: {error}") from error


def local_path(uri: str) -> str | None:
    """The path of a URI on this machine's disk; None for what lies elsewhere."""
    if "://" not in uri and "::" not in uri:
        return uri
    fs, path = locate(uri)
    return path if isinstance(fs, LocalFileSystem) else None


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


def open_file(uri: str, stop: int | None = None, chunk: int = CHUNK) -> BinaryIO:
    """Open for reading, seekable; on an object store for reading in order (see RemoteFile).

    `stop` is where reading will end, `chunk` the bytes of one request, 0 for as many as each read
    asks for. Raises NotAFile for what is none, and UsageError where a web server has no range
    requests.
    """
    here = local_path(uri)
    if here is not None:
        _check_regular(here)
        return open(here, "rb")  # noqa: PTH123
    fs, path = locate(uri)
    with reaching(uri):
        if is_web(uri) and len(fs.cat_file(path, start=0, end=1)) > 1:
            raise UsageError(
                f"{uri}: this web server does not answer range requests; download the files first"
            )
    return cast(BinaryIO, RemoteFile(fs, path, uri, stop, chunk))


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on, or fewer where the file ends before."""
    here = local_path(uri)
    if here is not None:
        with open_file(uri) as file:
            file.seek(offset)
            return file.read(length)
    fs, path = locate(uri)
    with reaching(uri):
        return fetch(fs, path, offset, offset + length)


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of several ranges (offset, length), in their order, by as few requests as is
    sensible: neighbours are read together, and the requests at the same time.
    """
    merged: list[list[int]] = []
    for offset, length in sorted(ranges):
        if merged and offset <= merged[-1][1] + MERGED_GAP:
            merged[-1][1] = max(merged[-1][1], offset + length)
        else:
            merged.append([offset, offset + length])
    with ThreadPoolExecutor(RANGE_THREADS) as pool:
        pieces = list(pool.map(lambda span: read_range(uri, span[0], span[1] - span[0]), merged))
    starts = [start for start, _ in merged]
    result = []
    for offset, length in ranges:
        piece = bisect_right(starts, offset) - 1
        at = offset - starts[piece]
        result.append(pieces[piece][at : at + length])
    return result


def read_whole(uri: str) -> bytes:
    """All bytes of a file. Raises NotAFile for what is none."""
    here = local_path(uri)
    if here is not None:
        with open_file(here) as file:
            return file.read()
    fs, path = locate(uri)
    with reaching(uri):
        return bytes(fs.cat_file(path))


def size(uri: str) -> int:
    """Bytes in a file."""
    fs, path = locate(uri)
    with reaching(uri):
        return size_now(fs, path)


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    fs, path = locate(uri)
    with reaching(uri):
        if is_web(uri):
            return bool(fs.exists(path))
        try:  # `exists` of fsspec would take every error for a no
            fs.info(path)
        except FileNotFoundError:
            return False
    return True


def version(uri: str) -> str | None:
    """Text that changes when a file or a local folder does; None where unknown."""
    fs, path = locate(uri)
    if isinstance(fs, LocalFileSystem):
        return str(Path(path).stat().st_mtime_ns)
    with reaching(uri):
        return _version(fs.info(path))


@functools.cache
def local_copy(url: str) -> str:
    """The path of a file on this machine's disk: the file itself where it is there, else a copy
    that lasts as long as the process.
    """
    here = local_path(url)
    if here is not None:
        return here
    fs, path = locate(url)
    target = f"{tempfile.mkdtemp(dir=_copies().name)}/{name(path)}"
    with reaching(url):
        fs.get_file(path, target)
    return target


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="zfscale-")


def expand(pattern: str) -> list[Place]:
    """The places that a file, folder, glob or URL names; empty where there is nothing.

    A name that exists is itself, even with a `*` or `[` in it. Raises UsageError where a folder
    cannot be listed, and for a single pipe, socket or device.
    """
    fs, path = locate(pattern)
    uri = canonical(pattern)
    try:
        with reaching(uri):
            if not isinstance(fs, LocalFileSystem):
                fs.invalidate_cache()  # others may have written since the last listing
            if fs.isdir(path):
                return [Place("folder", uri)]
            if fs.exists(path):
                return [Place("file", uri, (_single(fs, path, uri),))]
            if not _is_glob(path):
                return []
            matches = fs.glob(path, detail=True)
            folders = [
                _full(fs, match)
                for match, info in matches.items()
                if info["type"] != "file" and fs.isdir(match)
            ]
            loose = _loose(fs, matches)
    except PermissionError as error:
        raise UsageError(f"images: {pattern}: cannot be listed: {error}") from error
    places = [Place("folder", folder) for folder in folders]
    return [*places, Place("glob", uri, loose)] if loose else places


def _single(fs: fsspec.AbstractFileSystem, path: str, uri: str) -> Entry:
    if isinstance(fs, LocalFileSystem):
        entry = _local_entry(path, Path(path).stat())
        if not entry.regular:
            raise UsageError(f"images: {path}: is {_kind_of(Path(path).stat())}, expected a file")
        return replace(entry, uri=uri)
    return _remote_entry(fs, path, fs.info(path))


def _loose(
    fs: fsspec.AbstractFileSystem, matches: Mapping[str, Mapping[str, Any]]
) -> tuple[Entry, ...]:
    found = [
        _listed(fs, match, info)
        for match, info in matches.items()
        if not _hidden(match) and (info["type"] == "file" or not fs.isdir(match))
    ]
    return tuple(sorted(found, key=lambda entry: entry.uri))


def _listed(fs: fsspec.AbstractFileSystem, path: str, info: Mapping[str, Any]) -> Entry:
    if not isinstance(fs, LocalFileSystem):
        return _remote_entry(fs, path, info)
    try:
        return _local_entry(path, Path(path).stat())
    except FileNotFoundError:
        return Entry(path, 0)  # A link that leads nowhere; reading it will say so.


def fingerprint(entries: Iterable[Entry]) -> str:
    """Text that changes when one of several files does, comes or goes.

    Where the version of one is unknown, its name and its size have to do.
    """
    digest = hashlib.blake2b(digest_size=16)
    for entry in entries:
        digest.update(f"{entry.uri!a} {entry.size} {entry.version}\n".encode())
    return digest.hexdigest()


def has_no_folders(folder: str) -> bool:
    """Whether a local folder says, without being listed, that there is none in it.

    Most file systems count a link for each folder; those that do not give another number. A
    symbolic link to a folder is not counted.
    """
    path = local_path(folder)
    return path is not None and Path(path).stat().st_nlink == 2


def look(folder: str, limit: int | None = None) -> Level:
    """What lies straight in a folder, without what is hidden; opens nothing.

    On a local disk no more than `limit` names are looked at. Raises UsageError where the folder
    cannot be listed.
    """
    fs, path = locate(folder)
    files: list[str] = []
    folders: list[str] = []
    try:
        if isinstance(fs, LocalFileSystem):
            with os.scandir(path) as children:
                for child in islice(children, limit):
                    if child.name.startswith("."):
                        continue
                    if not child.is_dir():
                        files.append(child.path)
                    elif not (child.is_symlink() and _encloses(os.path.realpath(child.path), path)):
                        folders.append(child.path)
        else:
            with reaching(folder):
                for info in fs.ls(path, detail=True):
                    child = info["name"].rstrip("/")
                    if not _hidden(child) and child != path.rstrip("/"):
                        kind = folders if info["type"] == "directory" else files
                        kind.append(_full(fs, child))
    except PermissionError as error:
        raise UsageError(f"images: {folder}: cannot be listed: {error}") from error
    return Level(tuple(sorted(files)), tuple(sorted(folders)))


def walk(folder: str, suffixes: tuple[str, ...], recursive: bool = True) -> list[Entry]:
    """The files in a folder and those below it whose names end so, in any case, sorted by URI.

    None whose name begins with a dot. Symbolic links are followed on a local disk, but not in
    circles. Raises UsageError where a folder cannot be listed.
    """
    fs, path = locate(folder)
    found: Iterable[Entry]
    try:
        if isinstance(fs, LocalFileSystem):
            found = list(_walk_local(path, suffixes, recursive))
        else:
            with reaching(folder):
                listed = fs.find(path, maxdepth=None if recursive else 1, detail=True)
                found = [
                    _remote_entry(fs, child, info)
                    for child, info in listed.items()
                    if not _hidden(child) and child.lower().endswith(suffixes)
                ]
    except PermissionError as error:
        raise UsageError(f"images: {folder}: cannot be listed: {error}") from error
    return sorted(found, key=lambda entry: entry.uri)


def _walk_local(root: str, suffixes: tuple[str, ...], recursive: bool) -> Iterator[Entry]:
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
                elif child.name.lower().endswith(suffixes):
                    try:
                        yield _local_entry(child.path, child.stat())
                    except FileNotFoundError:
                        yield Entry(child.path, 0)  # It leads nowhere; reading it will say so.


def _encloses(target: str, folder: str) -> bool:
    """Whether `folder` lies in `target`, a real path: a link to it would go round in a circle."""
    return f"{os.path.realpath(folder)}/".startswith(f"{target.rstrip('/')}/")


def _hidden(path: str) -> bool:
    return name(path).startswith(".")


def _full(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _local_entry(path: str, status: os.stat_result) -> Entry:
    regular = stat.S_ISREG(status.st_mode)
    return Entry(path, status.st_size, str(status.st_mtime_ns), regular)


def _remote_entry(fs: fsspec.AbstractFileSystem, path: str, info: Mapping[str, Any]) -> Entry:
    size = info.get("size")
    if size is None:  # The web does not list sizes: the file itself says it.
        size = fs.size(path) or 0
    return Entry(_full(fs, path), int(size), _version(info))


def _version(info: Mapping[str, Any]) -> str | None:
    """The first that a listing has: stores name the same thing differently."""
    names = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")
    found = next((info[name] for name in names if info.get(name) is not None), None)
    return None if found is None else str(found).strip('"')


def _check_regular(path: str) -> None:
    """Raises NotAFile for what opening would wait for, e.g. a named pipe without a writer."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise NotAFile(f"{path}: is {_kind_of(status)}, expected a file")


def _kind_of(status: os.stat_result) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def is_web(uri: str) -> bool:
    """Whether a web server is asked for a file: it lists nothing, and may answer anything."""
    return uri.startswith(("http://", "https://"))


def _is_glob(path: str) -> bool:
    # In a web address `?` begins the query.
    return any(character in path for character in ("*[" if is_web(path) else "*?["))


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of every item, in order, a few at a time: what waits for storage overlaps."""
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(function, items))
